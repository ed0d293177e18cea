"""The order in which rows are trained on: a function of seed and step alone, whatever the number of ranks."""

from __future__ import annotations

import heapq
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from etd_ds.data import batch, corpus

_ROUNDS = 6
_ATTENTION = 6 * 768
"""A token's attention over n others costs n / (6·hidden) of its linear layers; the hidden size is BERT-Base's."""


class Totals(NamedTuple):
    """Sizes of one step's global batch: what a mean over all of it is divided by."""

    tokens: int
    pairs: int
    """Pairs of tokens of one segment: the sum of squared segment lengths."""
    rows: int


class Stream:
    """Micro batches of each optimizer step for one rank. Position is the step number; there is no other state.

    Epoch e is the rows in an order drawn from (seed, e); epochs follow each other without a gap, and step s takes
    positions [s·batch_size, (s+1)·batch_size). Any rank can say what any step holds without reading a token of it.
    """

    def __init__(self, rows: corpus.Rows, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if not len(rows):
            raise ValueError("a stream of no rows")
        if not 0 <= rank < world_size or batch_size % world_size:
            raise ValueError(f"rank {rank} of {world_size}, {batch_size} rows a step")
        self._rows = rows
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size

    def micro_batches(self, step: int, micro_batch_size: int) -> list[batch.Batch]:
        """This rank's share of a step: batch_size / world_size / micro_batch_size batches of nearly equal work.

        The step's rows are dealt over all micro batches of all ranks by their cost, so a batch may hold some rows more
        or fewer than `micro_batch_size`. Raises `CorpusError` if a row changed on disk.
        """
        parts, rest = divmod(self._batch_size, self._world_size * micro_batch_size)
        if rest:
            raise ValueError(f"{self._batch_size} rows a step over {self._world_size} ranks × {micro_batch_size} rows")
        rows = self.rows(step)
        tokens, pairs = self._rows.sizes(rows)
        bins = deal(tokens + pairs / _ATTENTION, parts * self._world_size)
        # Back and forth over the ranks, so that none gets the dearest of every round.
        turns = (self._rank if number % 2 == 0 else self._world_size - 1 - self._rank for number in range(parts))
        mine = [bins[number * self._world_size + turn] for number, turn in enumerate(turns)]
        return [batch.collate([self._rows[int(rows[index])] for index in part], self._rows.pad_id) for part in mine]

    def totals(self, step: int) -> Totals:
        """Sizes of the whole global batch of a step, over all ranks, from the index alone."""
        tokens, pairs = self._rows.sizes(self.rows(step))
        return Totals(int(tokens.sum()), int(pairs.sum()), self._batch_size)

    def rows(self, step: int) -> np.ndarray:
        """Indices of the rows of a step's global batch, the same on every rank."""
        positions = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        epochs, offsets = np.divmod(positions, len(self._rows))
        found = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = shuffled(offsets[here], len(self._rows), self._seed, int(epoch))
        return found


class Ahead:
    """A stream whose coming steps are made by a thread while the present one is trained on; otherwise the same."""

    def __init__(self, stream: Stream, *, depth: int = 2, pin_memory: bool = False) -> None:
        self._stream = stream
        self._depth = depth
        self._pin_memory = pin_memory
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._coming: dict[tuple[int, int], Future[list[batch.Batch]]] = {}
        self._started: float | None = None
        self.waited = 0.0
        """Seconds that callers waited for batches, those of the first step not counted."""

    def micro_batches(self, step: int, micro_batch_size: int) -> list[batch.Batch]:
        """As `Stream.micro_batches`, at once if the step before was asked for a while ago."""
        asked = time.perf_counter()
        wanted = [(later, micro_batch_size) for later in range(step, step + self._depth + 1)]
        for key in self._coming.keys() - wanted:
            self._coming.pop(key).cancel()
        for key in wanted:
            if key not in self._coming:
                self._coming[key] = self._thread.submit(self._make, *key)
        batches = self._coming.pop(wanted[0]).result()
        if self._started is None:
            self._started = time.perf_counter()
        else:
            self.waited += time.perf_counter() - asked
        return batches

    def totals(self, step: int) -> Totals:
        """As `Stream.totals`."""
        return self._stream.totals(step)

    @property
    def waiting_share(self) -> float:
        """Share of the time since the first step that was spent waiting for batches."""
        elapsed = 0.0 if self._started is None else time.perf_counter() - self._started
        return self.waited / elapsed if elapsed else 0.0

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _make(self, step: int, micro_batch_size: int) -> list[batch.Batch]:
        batches = self._stream.micro_batches(step, micro_batch_size)
        return [packed.pin_memory() for packed in batches] if self._pin_memory else batches


def deal(costs: np.ndarray, bins: int) -> list[list[int]]:
    """Indices dealt into `bins` of nearly equal cost, none empty: the dearest first, each to the cheapest bin so far.

    Bins come dearest first, so those that ranks work on at the same time (neighbours) are the most alike.
    """
    loads = [(0.0, index) for index in range(bins)]
    dealt: list[list[int]] = [[] for _ in range(bins)]
    for item in np.argsort(-costs, kind="stable").tolist():
        load, index = heapq.heappop(loads)
        dealt[index].append(item)
        heapq.heappush(loads, (load + float(costs[item]), index))
    order = [index for _, index in sorted(loads, key=lambda entry: (-entry[0], entry[1]))]
    return [dealt[index] for index in order]


def shuffled(offsets: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(n) keyed by (seed, epoch), at the given places, without making the others.

    A Feistel network permutes the next power of four; places that land beyond n walk on until they land within.
    """
    half = max(1, (max(n - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint64)
    values = offsets.astype(np.uint64)
    outside = np.ones(len(values), bool)
    while outside.any():
        left, right = values[outside] >> np.uint64(half), values[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        values[outside] = (left << np.uint64(half)) | right
        outside = values >= n
    return values.astype(np.int64)


def _mixed(values: np.ndarray) -> np.ndarray:
    # splitmix64's finalizer: every output bit depends on every input bit.
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
