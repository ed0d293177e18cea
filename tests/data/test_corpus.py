from pathlib import Path

import numpy as np
import pytest
import torch

from etd_ds import data
from etd_ds.contract import errors, teachers
from etd_ds.data import batch, shards, tokenize

CLS, SEP = 101, 102


def _segments(rows: data.Rows) -> list[tuple[int, ...]]:
    found = []
    for index in range(len(rows)):
        row = rows[index]
        ends = np.cumsum(row.lengths)
        found += [tuple(part.tolist()) for part in np.split(row.ids_T, ends[:-1])]
    return found


def test_rows_hold_every_token_of_every_document_once(make, documents) -> None:
    corpus = make(validation_sequences=0)
    tokenizer = tokenize.open_tokenizer(teachers.embedded_folder())
    repeated = [" ".join(document.upper().split()) for document in documents[::10]]
    wanted = [tokenizer.encode(text, add_special_tokens=False).ids for text in documents + repeated]
    stretches = sorted(tuple(ids[at : at + 62]) for ids in wanted for at in range(0, len(ids), 62))
    segments = _segments(corpus.train)
    assert all(segment[0] == CLS and segment[-1] == SEP for segment in segments)
    assert sorted(segment[1:-1] for segment in segments) == stretches
    assert corpus.manifest.tokens == sum(map(len, wanted))
    assert (
        corpus.manifest.train.tokens
        == sum(map(len, segments))
        == corpus.train.sizes(np.arange(len(corpus.train)))[0].sum()
    )


def test_rows_are_nearly_full_and_never_longer(make) -> None:
    corpus = make()
    tokens, pairs = corpus.train.sizes(np.arange(len(corpus.train)))
    assert tokens.max() <= 64
    assert tokens.mean() > 0.93 * 64
    assert pairs.tolist() == [sum(length**2 for length in corpus.train[i].lengths) for i in range(len(corpus.train))]


@pytest.mark.parametrize("layout", ["packed", "pairs"])
def test_no_document_nor_its_copy_is_on_both_sides(make, documents, layout) -> None:
    corpus = make(layout=layout)
    assert corpus.manifest.duplicates == 60
    assert 0 < len(corpus.validation) <= 20
    train = {bytes(np.asarray(ids)) for ids in _grams(corpus.train)}
    held = [bytes(np.asarray(ids)) for ids in _grams(corpus.validation)]
    assert not train & set(held)


def _grams(rows: data.Rows) -> list[tuple[int, ...]]:
    # Openings of documents are unmistakable: [CLS] and the eleven tokens that follow, where no [SEP] is among them.
    return [s[:12] for s in _segments(rows) if len(s) > 12 and SEP not in s[:12]]


def test_held_out_is_a_tenth_at_most(make) -> None:
    corpus = make(validation_sequences=100_000)
    assert 0 < len(corpus.validation) <= (len(corpus.train) + len(corpus.validation)) / 10


def test_pairs_have_two_parts_with_their_types(make) -> None:
    corpus = make(layout="pairs")
    both = 0
    for index in range(len(corpus.train)):
        row = corpus.train[index]
        for ids, types in zip(
            np.split(row.ids_T, np.cumsum(row.lengths)[:-1]),
            np.split(row.types_T, np.cumsum(row.lengths)[:-1]),
            strict=True,
        ):
            separators = np.flatnonzero(ids == SEP)
            assert ids[0] == CLS
            assert separators[-1] == len(ids) - 1
            assert len(separators) in (1, 2)
            assert types.tolist() == [0] * (separators[0] + 1) + [1] * (len(ids) - separators[0] - 1)
            both += len(separators) == 2
    assert both > 0.9 * corpus.manifest.train.segments


def test_the_same_request_is_answered_from_the_cache(make, tmp_path: Path) -> None:
    first = make()
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    second = make()
    assert second.folder == first.folder
    assert {path: path.stat().st_mtime_ns for path in second.folder.rglob("*")} == before
    assert make(seq_length=32).folder != first.folder
    assert sorted(path.name for path in (tmp_path / "cache" / "corpus").iterdir() if "partial" in path.name) == []


def test_two_preparations_are_bytewise_equal(make, tmp_path: Path) -> None:
    one, two = make(cache=tmp_path / "one"), make(cache=tmp_path / "two")
    files = sorted(path.name for path in one.folder.iterdir())
    assert files == sorted(path.name for path in two.folder.iterdir())
    assert all((one.folder / name).read_bytes() == (two.folder / name).read_bytes() for name in files)


def test_a_prepared_folder_is_a_reference(make) -> None:
    corpus = make()
    again = make(corpus.folder)
    assert again.folder == corpus.folder
    with pytest.raises(errors.CorpusError, match="64 tokens a sequence, wanted 32"):
        make(corpus.folder, seq_length=32)


@pytest.mark.parametrize("name", ["train.rows", "validation.segments", shards.name(0, "tokens")])
@pytest.mark.parametrize("damage", ["flip", "shorten", "delete"])
def test_a_file_changed_after_preparation_is_never_read_as_if_whole(make, name: str, damage: str) -> None:
    path = make().folder / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "shorten":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    with pytest.raises(errors.CorpusError, match="changed after it was prepared"):
        _segments(make().train)


def test_padding_a_batch_keeps_every_token(make) -> None:
    rows = make().train
    packed = batch.collate([rows[index] for index in range(5)])
    padded = packed.padded()
    assert packed.ids_T.shape == packed.positions_T.shape == packed.types_T.shape == (sum(packed.lengths),)
    assert torch.equal(padded.ids_BS[padded.mask_BS.bool()], packed.ids_T)
    assert torch.equal(padded.mask_BS.sum(1), torch.tensor(packed.lengths))
    assert torch.equal(packed.positions_T, torch.cat([torch.arange(length) for length in packed.lengths]))
    assert (padded.ids_BS[~padded.mask_BS.bool()] == packed.pad_id).all()
