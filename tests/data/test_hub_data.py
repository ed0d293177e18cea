"""Hub data sets, as far as they can be seen without a hub: the library reads a local folder in the hub's layout."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from etd_ds.contract import corpora, errors, teachers
from etd_ds.data import corpus, preparation, reading, sources, tokenize

TOKENIZER = tokenize.open_tokenizer(teachers.embedded_folder())


@pytest.fixture
def repository(tmp_path: Path, documents: list[str]) -> Path:
    """Three parquet files of one split, as the hub stores large data sets."""
    folder = tmp_path / "repository" / "data"
    folder.mkdir(parents=True)
    for number in range(3):
        table = pa.table({"id": list(range(100)), "text": documents[100 * number : 100 * (number + 1)]})
        parquet.write_table(table, folder / f"train-{number:05d}-of-00003.parquet")
    return folder.parent


def _source(repository: Path) -> sources.Source:
    return sources.Source("org/name", "hub", (str(repository),), 0, None, None)


@pytest.mark.slow
def test_every_file_of_the_data_set_is_a_piece_and_they_are_read_in_order(repository: Path, documents) -> None:
    pieces = list(sources.pieces(_source(repository)))
    assert [(piece.kind, piece.start, piece.stop) for piece in pieces] == [("hub", 0, 3), ("hub", 1, 3), ("hub", 2, 3)]
    found = [text for piece in pieces for text in reading.documents(piece, reading.Tally())]
    assert found == documents[:300]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_data_set_is_prepared_like_any_source(repository: Path, tmp_path: Path, workers: int) -> None:
    options = preparation.make_options(TOKENIZER, seq_length=64, layout="packed", validation_sequences=9, seed=0)
    inputs = [preparation.Weighted(_source(repository))]
    made = preparation.build(inputs, options, TOKENIZER, tmp_path / "out", workers=workers, progress=False)
    assert made.manifest.documents == 300
    corpus.verify(made.folder)


@pytest.mark.slow
def test_a_data_set_without_text_or_not_there_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    parquet.write_table(pa.table({"body": ["x"]}), folder / "train.parquet")
    piece = next(sources.pieces(_source(folder)))
    with pytest.raises(errors.CorpusError, match=r"wanted a column 'text'.*got body"):
        list(reading.documents(piece, reading.Tally()))
    with pytest.raises(errors.CorpusError, match="cannot be opened"):
        next(sources.pieces(_source(tmp_path / "nowhere")))


def test_an_unreachable_hub_is_said_at_once(tmp_path: Path) -> None:
    argv = ["data", "prepare", "--source", "wikimedia/wikipedia:20231101.en", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from etd_ds import cli; sys.exit(cli.main(sys.argv[1:]))", *argv],
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "the hub data set wikimedia/wikipedia could not be looked up" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("reference", "wanted"),
    [
        ("wikimedia/wikipedia", corpora.Hub("wikimedia/wikipedia", None, None)),
        ("wikimedia/wikipedia:20231101.en", corpora.Hub("wikimedia/wikipedia", "20231101.en", None)),
        ("a/b:c@0123abc", corpora.Hub("a/b", "c", "0123abc")),
        ("a/b@main", corpora.Hub("a/b", None, "main")),
        ("../b", None),
        ("a/..", None),
        ("a--b/c", None),
        ("a", None),
        ("a/b/c", None),
        ("a/b:", None),
        ("a/b@x y", None),
    ],
)
def test_what_names_a_data_set(reference: str, wanted: corpora.Hub | None) -> None:
    assert corpora.parse_hub(reference) == wanted
