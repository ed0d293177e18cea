"""Which documents are never trained on: decided by what a document says alone, so that copies stay together."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from etd_ds.contract import errors
from etd_ds.data import raw

_BUCKET = 1 << 22  # documents counted at once


def choose(shards: Iterable[np.ndarray], tokens: int, limit: int) -> np.ndarray:
    """Hashes (uint64, ascending) of the held-out documents: the smallest that add up to `tokens`, `limit` at most.

    `shards` yields records with `hash` and `tokens`. Memory grows with what is held out, not with the corpus.
    """
    hashes, lengths = np.empty(0, np.uint64), np.empty(0, np.int64)
    for records in shards:
        hashes = np.concatenate([hashes, records["hash"]])
        lengths = np.concatenate([lengths, records["tokens"].astype(np.int64)])
        order = np.argsort(hashes, kind="stable")
        hashes, lengths = hashes[order], lengths[order]
        enough = int(np.searchsorted(np.cumsum(lengths), tokens))
        if enough < len(hashes):
            kept = int(np.searchsorted(hashes, hashes[enough], side="right"))
            hashes, lengths = hashes[:kept], lengths[:kept]
    if tokens <= 0 or not len(hashes):
        return np.empty(0, np.uint64)
    chosen, firsts = np.unique(hashes, return_index=True)
    totals = np.cumsum(np.add.reduceat(lengths, firsts))
    return chosen[totals <= limit]


def duplicates(shards: Callable[[], Iterable[np.ndarray]]) -> int:
    """Documents that another one with the same hash came before; few hashes are in memory at once."""
    total = sum(len(records) for records in shards())
    buckets = np.uint64(total // _BUCKET + 1)
    distinct = 0
    for bucket in range(int(buckets)):
        hashes = [records["hash"][records["hash"] % buckets == bucket] for records in shards()]
        distinct += len(np.unique(np.concatenate(hashes)))
    return total - distinct


def trained_on(reference: str) -> Iterator[list[str]]:
    """Sentences of the documents that no preparation holds out, in file order: those of the upper half of all hashes.

    Held out are the smallest hashes, up to a tenth of the text; only where a few documents are the whole corpus could
    they reach the upper half. Raises `CorpusError`.
    """
    return (document for text_hash, document in raw.documents(reference) if text_hash >= 1 << 63)


def sentences(reference: str, count: int) -> list[str]:
    """`count` sentences of the documents that every preparation holds out first. Raises `CorpusError`.

    At least those of a twentieth of the documents must do, so that a tenth of the tokens, which is the most that is
    ever held out, has them; a preparation with few `validation_sequences` may hold out fewer.
    """
    smallest: list[tuple[int, list[str]]] = []
    total = 0
    for text_hash, document in raw.documents(reference):
        total += 1
        heapq.heappush(smallest, (-text_hash, document))
        if len(smallest) > count:
            heapq.heappop(smallest)
    found: list[str] = []
    for _, document in sorted(smallest, reverse=True)[: max(1, total // 20)]:
        found += document
        if len(found) >= count:
            return found[:count]
    raise errors.CorpusError(
        f"corpus: wanted {count} held-out sentences, {reference} has {len(found)}; ask for fewer (--sentences) or give "
        "more text",
        wanted=count,
        got=len(found),
    )
