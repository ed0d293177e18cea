import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from etd_ds import data
from etd_ds.contract import errors
from etd_ds.data import raw, reading, sources


def _read(path: object, size: int = sources.PIECE_BYTES) -> tuple[list[str], reading.Tally]:
    tally = reading.Tally()
    source = sources.locate(str(path))
    return [text for piece in sources.pieces(source, size) for text in reading.documents(piece, tally)], tally


def test_blank_lines_part_documents_of_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\nOne.\nTwo.\n\n \t\nThree.\r\n\r\nFour.")
    assert _read(tmp_path / "a.txt")[0] == ["One.\nTwo.", "Three.", "Four."]


def test_doc_gathers_lines_of_json(tmp_path: Path) -> None:
    rows = [{"doc": 1, "text": "a"}, {"doc": 1, "text": "b"}, {"doc": 2, "text": "c"}, {"text": "d"}, {"text": "e"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert _read(tmp_path / "a.jsonl")[0] == ["a\nb", "c", "d", "e"]


def test_a_folder_and_a_glob_are_read_in_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text(name)
    assert _read(tmp_path)[0] == _read(tmp_path / "*.txt")[0] == ["a.txt", "b.txt"]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_pieces_of_any_size_are_the_same_documents(tmp_path: Path, documents, kind: str) -> None:
    path, texts = tmp_path / f"a.{kind}", [" ".join(text.split()) for text in documents]
    if kind == "txt":
        path.write_text("\n\n".join(texts))
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    else:
        parquet.write_table(pa.table({"text": texts, "id": range(len(texts))}), path, row_group_size=16)
    for size in (sources.PIECE_BYTES, 60_000, 8_000):
        pieces = list(sources.pieces(sources.locate(str(path)), size))
        assert len(pieces) > 2 or size > 60_000
        assert [text for piece in pieces for text in reading.documents(piece, reading.Tally())] == texts


def test_documents_gathered_by_doc_are_not_parted_at_a_piece(tmp_path: Path) -> None:
    rows = [{"doc": index // 7, "text": f"{index} " + "word " * 30} for index in range(2000)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    whole = _read(tmp_path / "a.jsonl")[0]
    assert len(whole) == -(-2000 // 7)
    pieces = list(sources.pieces(sources.locate(str(tmp_path / "a.jsonl")), 20_000))
    assert len(pieces) > 3
    assert [text for piece in pieces for text in reading.documents(piece, reading.Tally())] == whole


def test_undecodable_bytes_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 and caf\xe9\n\n" + "good é \ufffd text".encode() + b"\n\n\xff\xfe!")
    texts, tally = _read(tmp_path / "a.txt")
    assert len(texts) == 3
    assert texts[0] == "caf\ufffd and caf\ufffd"
    assert tally.undecodable == 4


def test_half_a_surrogate_pair_is_counted_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(r'{"text": "whole \ud83d\ude00, half \ud83d, other half \ude00"}')
    texts, tally = _read(tmp_path / "a.jsonl")
    assert texts == ["whole \U0001f600, half \ufffd, other half \ufffd"]
    assert tally.undecodable == 2


def test_a_line_of_100_mb_is_read_in_parts_or_counted(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.write(b"Before.\n\n")
        for _ in range(100):
            file.write(b"words of no end " * 65536)
        file.write("\n\nAfter é.".encode())
    words = 0
    tally = reading.Tally()
    for piece in sources.pieces(sources.locate(str(tmp_path / "a.txt"))):
        for text in reading.documents(piece, tally):
            assert len(text) <= 4 * reading.DOCUMENT_CHARS
            words += len(text.split())
    assert words == 1 + 100 * 65536 * 4 + 2
    assert tally.lines_cut >= 1
    assert tally.undecodable == 0


def test_a_json_line_that_is_too_long_is_left_out_and_counted(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(b'{"text": "before"}\n{"text": "')
        for _ in range(20):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"text": "after"}\n')
    texts, tally = _read(tmp_path / "a.jsonl")
    assert texts == ["before", "after"]
    assert tally.lines_skipped == 1


def test_a_json_line_over_several_pieces_is_that_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    long = json.dumps({"text": "x" * 5000})
    path.write_text('{"text": "before"}\n' + long + '\n{"text": "after"}\n')
    assert len(list(sources.pieces(sources.locate(str(path)), 1000))) > 3
    texts, tally = _read(path, 1000)
    assert texts == ["before", "x" * 5000, "after"]
    assert tally.lines_skipped == 0
    monkeypatch.setattr(reading, "_JSON_LINE_BYTES", 1500)
    texts, tally = _read(path, 1000)
    assert texts == ["before", "after"]
    assert tally.lines_skipped == 1


def test_a_line_without_blanks_is_cut_between_characters(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("東" * 100_000, encoding="utf-8")
    texts, tally = _read(tmp_path / "a.txt")
    assert "".join("".join(texts).split()) == "東" * 100_000
    assert tally.undecodable == 0


def test_what_is_not_a_text_is_counted(tmp_path: Path) -> None:
    lines = ['{"text": "good"}', "not json", '{"text": 3}', "[]", '{"body": "x"}', "", "[" * 100_000]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    texts, tally = _read(tmp_path / "a.jsonl")
    assert texts == ["good"]
    assert tally.lines_skipped == 5


def test_a_long_document_goes_on_as_several(tmp_path: Path) -> None:
    text = "A sentence of some length stands here. " * 5000
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    texts, tally = _read(tmp_path / "a.jsonl")
    assert "".join(texts) == text
    assert all(len(part) <= 2 * reading.DOCUMENT_CHARS for part in texts)
    assert tally.documents_cut == 1


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_a_parquet_string_that_is_not_utf8_is_counted(tmp_path: Path, kind: pa.DataType) -> None:
    raw = pa.array([b"caf\xe9", None, "caf\u00e9".encode()], pa.binary())
    if pa.types.is_dictionary(kind):
        raw = raw.dictionary_encode()
        values = pa.Array.from_buffers(pa.string(), len(raw.dictionary), raw.dictionary.buffers())
        column = pa.DictionaryArray.from_arrays(raw.indices, values)
    else:
        raw = raw.cast(pa.large_binary()) if kind == pa.large_string() else raw
        column = pa.Array.from_buffers(kind, len(raw), raw.buffers())
    parquet.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    texts, tally = _read(tmp_path / "a.parquet")
    assert texts == ["caf\ufffd", "caf\u00e9"]
    assert tally.undecodable == 1


@pytest.mark.parametrize("keep", [0, 3, 200, -5])
def test_a_truncated_parquet_is_an_error(tmp_path: Path, documents, keep: int) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": documents}), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(errors.CorpusError, match=r"a\.parquet is not a whole parquet file"):
        _read(path)


def test_a_parquet_damaged_inside_is_an_error(tmp_path: Path, documents) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": documents}), path)
    content = bytearray(path.read_bytes())
    content[1000:60_000] = bytes(59_000)
    path.write_bytes(content)
    with pytest.raises(errors.CorpusError, match=r"a\.parquet"):
        _read(path)


def test_a_parquet_without_text_names_its_columns(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(errors.CorpusError, match=r"wanted a column 'text'.* got body"):
        _read(tmp_path / "a.parquet")


@pytest.mark.parametrize(("kind", "size"), [("txt", 50_000), ("jsonl", 50_000), ("parquet", 1)])
def test_a_source_that_disappears_is_an_error(tmp_path: Path, documents, kind: str, size: int) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        parquet.write_table(pa.table({"text": documents}), path, row_group_size=100)
    else:
        path.write_text("\n\n".join(json.dumps({"text": text}) for text in documents))
    pieces = list(sources.pieces(sources.locate(str(path)), size))
    assert list(reading.documents(pieces[0], reading.Tally()))
    path.write_bytes(b"short")
    with pytest.raises(errors.CorpusError, match=rf"a\.{kind}"):
        list(reading.documents(pieces[-1], reading.Tally()))
    path.unlink()
    with pytest.raises(errors.CorpusError, match=rf"a\.{kind}"):
        list(reading.documents(pieces[-1], reading.Tally()))


@pytest.mark.parametrize(
    "reference", ["nowhere", "/nowhere/at/all.txt", "/nowhere/*.txt", "https://example.org/x", "a/b/c", "../x", "a/b@"]
)
def test_what_is_no_corpus_is_refused(reference: str) -> None:
    with pytest.raises(errors.CorpusError, match="wanted 'embedded', a hub data set"):
        sources.locate(reference)


def test_a_file_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n")
    with pytest.raises(errors.CorpusError, match=r"\.txt, \.jsonl, \.parquet, got a\.csv"):
        sources.locate(str(tmp_path / "a.csv"))


def test_files_of_several_kinds_are_several_sources(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(errors.CorpusError, match="jsonl and text"):
        sources.locate(str(tmp_path))


def test_too_few_sentences_says_how_many_there_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One. Two. Three.")
    assert data.sentences(str(tmp_path / "a.txt"), 3) == ["One.", "Two.", "Three."]
    with pytest.raises(errors.CorpusError, match=r"wanted 4 sentences, .* holds 3"):
        raw.sentences(str(tmp_path / "a.txt"), 4)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("a.txt", ("a.txt", 1.0)),
        ("a.txt=2", ("a.txt", 2.0)),
        ("o/n:c@r=0.25", ("o/n:c@r", 0.25)),
        ("a=b", ("a=b", 1.0)),
    ],
)
def test_a_weight_follows_an_equals_sign(spec: str, wanted: tuple[str, float]) -> None:
    assert sources.weighted(spec) == wanted


@pytest.mark.parametrize("spec", ["a.txt=0", "a.txt=-1", "a.txt=nan", "a.txt=inf", "a.txt=1e9"])
def test_a_weight_out_of_range_is_refused(spec: str) -> None:
    with pytest.raises(errors.CorpusError, match="wanted a weight above 0"):
        sources.weighted(spec)
