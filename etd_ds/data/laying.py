"""Token shards into the rows of both splits, written as they come; constant memory."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from etd_ds.data import corpus, packing, pairing, shards, tokenize

_FLUSH = 4096  # rows

Place = tuple[int, int, int, int, int]
"""(shard, a, a_len, b, b_len), as in `corpus.SEGMENT`."""


class Laying:
    """The shards of one folder, and the rule by which their documents become rows."""

    def __init__(
        self,
        folder: Path,
        made: Sequence[shards.Shard],
        *,
        weights: Sequence[float],
        options: corpus.Options,
        special: tokenize.Special,
    ) -> None:
        self._folder = folder
        self._made = made
        self._weights = weights
        self._options = options
        # Few shards are mapped at a time: rows are laid from one to the next, and mapped pages count as memory.
        self._tokens = functools.lru_cache(maxsize=4)(lambda index: shards.tokens(folder, index, special))

    def documents(self) -> Iterator[np.ndarray]:
        """The records of each shard's documents, in order."""
        return (shards.documents(self._folder, index) for index in range(len(self._made)))

    def train(self, held: np.ndarray, advance: Callable[[int], object]) -> corpus.Split:
        """Write the rows of all documents that are not held out, as often as their source's weight says.

        `advance` is told the tokens that were laid since it was last called.
        """
        passes = range(math.ceil(max(self._weights)))
        places = itertools.chain.from_iterable(self._pass(number, held) for number in passes)
        return self._write("train", packing.pack(places, self._options.seq_length), advance)

    def validation(self, held: np.ndarray, limit: int) -> corpus.Split:
        """Write at most `limit` rows of the held-out documents, each once."""
        places = itertools.chain.from_iterable(
            self._places(shard, documents, np.isin(documents["hash"], held), "validation")
            for shard, documents in enumerate(self.documents())
        )
        rows = packing.pack(places, self._options.seq_length)
        return self._write("validation", itertools.islice(rows, limit), lambda _: None)

    def _pass(self, number: int, held: np.ndarray) -> Iterator[tuple[Place, int]]:
        for shard, (made, documents) in enumerate(zip(self._made, self.documents(), strict=True)):
            share = min(1.0, self._weights[made.source] - number)
            if share > 0:
                wanted = ~np.isin(documents["hash"], held)
                if share < 1:
                    # The upper bits say who is held out; the lower ones, who is in a part of the source.
                    wanted &= (documents["hash"] & np.uint64(0xFFFFFFFF)) < np.uint64(share * 2**32)
                yield from self._places(shard, documents, wanted, f"train {number}")

    def _places(self, shard: int, documents: np.ndarray, wanted: np.ndarray, draw: str) -> Iterator[tuple[Place, int]]:
        lengths = documents["tokens"].astype(np.int64)
        ends = np.cumsum(lengths)
        if self._options.layout == "packed":
            room = self._options.seq_length - 2
            for start, length in zip((ends - lengths)[wanted].tolist(), lengths[wanted].tolist(), strict=True):
                for offset, size in packing.spans(length, room):
                    yield (shard, start + offset, size, 0, 0), size + 2
        else:
            yield from self._pairs(shard, documents, wanted, draw)

    def _pairs(self, shard: int, records: np.ndarray, wanted: np.ndarray, draw: str) -> Iterator[tuple[Place, int]]:
        # Pairs are drawn among the wanted documents alone, so that none reaches across the split.
        sentences = shards.sentences(self._folder, shard).tolist()
        documents: list[pairing.Document] = []
        first = start = 0
        for (_, count, length), keep in zip(records.tolist(), wanted.tolist(), strict=True):
            if keep:
                documents.append((start, sentences[first : first + count]))
            first, start = first + count, start + length
        generator = random.Random(f"{self._options.seed} {shard} {draw}")
        for place in pairing.pairs(documents, self._options.seq_length - 3, generator):
            yield (shard, *place), place.a_len + place.b_len + (3 if place.b_len else 2)

    def _write(self, split: str, rows: Iterable[list[Place]], advance: Callable[[int], object]) -> corpus.Split:
        segments = tokens = count = 0
        iterator = iter(rows)
        with (
            (self._folder / f"{split}.segments").open("wb") as segment_file,
            (self._folder / f"{split}.rows").open("wb") as row_file,
        ):
            while block := list(itertools.islice(iterator, _FLUSH)):
                written, size = self._flush(block, segments, segment_file, row_file)
                segments, tokens, count = segments + written, tokens + size, count + len(block)
                advance(size)
        return corpus.Split(rows=count, segments=segments, tokens=tokens)

    def _flush(
        self, block: list[list[Place]], first: int, segment_file: BinaryIO, row_file: BinaryIO
    ) -> tuple[int, int]:
        places = [place for row in block for place in row]
        records = np.array([(*place, self._crc(place)) for place in places], corpus.SEGMENT)
        segment_file.write(records.tobytes())
        sizes = corpus.segment_lengths(records)
        counts = np.array([len(row) for row in block])
        firsts = np.cumsum(counts) - counts
        rows = np.empty(len(block), corpus.ROW)
        rows["first"], rows["segments"] = first + firsts, counts
        rows["tokens"], rows["pairs"] = np.add.reduceat(sizes, firsts), np.add.reduceat(sizes * sizes, firsts)
        row_file.write(rows.tobytes())
        return len(places), int(sizes.sum())

    def _crc(self, place: Place) -> int:
        shard, a, a_len, b, b_len = place
        tokens = self._tokens(shard)
        return shards.checksum(tokens[a : a + a_len], tokens[b : b + b_len])
