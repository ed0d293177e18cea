"""From a corpus reference to a deterministic stream of packed token batches."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from etd_ds.data.corpus import Corpus, Row, Rows, open_corpus
from etd_ds.data.preparation import prepare
from etd_ds.data.raw import documents, opening, sentences

if TYPE_CHECKING:
    from etd_ds.data.batch import Batch, Padded
    from etd_ds.data.stream import Ahead, Stream, Totals

__all__ = [
    "Ahead",
    "Batch",
    "Corpus",
    "Padded",
    "Row",
    "Rows",
    "Stream",
    "Totals",
    "documents",
    "open_corpus",
    "opening",
    "prepare",
    "sentences",
]

# Batches are torch's, which takes seconds to import; preparing a corpus, perhaps in many processes, needs none of it.
_WITH_TORCH = {"Batch": "batch", "Padded": "batch", "Ahead": "stream", "Stream": "stream", "Totals": "stream"}


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        return getattr(importlib.import_module(f"etd_ds.data.{_WITH_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
