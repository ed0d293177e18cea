"""From a corpus reference to a deterministic stream of packed token batches."""

from __future__ import annotations

from collections.abc import Iterator

from etd_ds.contract import errors
from etd_ds.data import reading, sources, splitting
from etd_ds.data.batch import Batch, Padded, Row
from etd_ds.data.corpus import Corpus, Rows, open_corpus
from etd_ds.data.preparation import prepare
from etd_ds.data.stream import Stream, Totals

__all__ = [
    "Batch",
    "Corpus",
    "Padded",
    "Row",
    "Rows",
    "Stream",
    "Totals",
    "documents",
    "open_corpus",
    "prepare",
    "sentences",
]


def documents(reference: str) -> Iterator[str]:
    """Every document of a corpus in file order. Raises `CorpusError`."""
    tally = reading.Tally()
    for piece in sources.pieces(sources.locate(reference)):
        yield from reading.documents(piece, tally)


def sentences(reference: str, count: int) -> list[str]:
    """The first `count` sentences of a corpus in file order. Raises `CorpusError` when it holds fewer."""
    found: list[str] = []
    for document in documents(reference):
        found += splitting.sentences(document)
        if len(found) >= count:
            return found[:count]
    raise errors.CorpusError(
        f"corpus: wanted {count} sentences, {reference} holds {len(found)}; ask for fewer or give more text",
        wanted=count,
        got=len(found),
    )
