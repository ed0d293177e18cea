import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from etd_ds import data
from etd_ds.contract import teachers
from etd_ds.data import reading, sources

Make = Callable[..., data.Corpus]


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """The first 600 documents of the embedded corpus."""
    piece = next(sources.pieces(sources.locate("embedded")))
    return list(itertools.islice(reading.documents(piece, reading.Tally()), 600))


@pytest.fixture
def corpus_file(tmp_path: Path, documents: list[str]) -> Path:
    """A JSON-lines file of real documents, every tenth of which comes twice."""
    path = tmp_path / "corpus.jsonl"
    repeated = [" ".join(document.upper().split()) for document in documents[::10]]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents + repeated))
    return path


@pytest.fixture
def make(tmp_path: Path, corpus_file: Path) -> Make:
    """Prepare that file, with options."""

    def prepare(reference: object = corpus_file, **options: object) -> data.Corpus:
        settings = {"seq_length": 64, "validation_sequences": 20, "cache": tmp_path / "cache", "progress": False}
        return data.prepare(str(reference), tokenizer=teachers.embedded_folder(), **{**settings, **options})

    return prepare
