"""Which documents are never trained on. Pure, and decided by what a document says alone, so copies stay together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

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


def duplicates(shards: Sequence[np.ndarray]) -> int:
    """Documents that another one with the same hash came before; at most `_BUCKET` hashes or so are in memory."""
    total = sum(len(records) for records in shards)
    buckets = total // _BUCKET + 1
    distinct = 0
    for bucket in range(buckets):
        parts = [records["hash"][records["hash"] % np.uint64(buckets) == bucket] for records in shards]
        distinct += len(np.unique(np.concatenate(parts))) if parts else 0
    return total - distinct
