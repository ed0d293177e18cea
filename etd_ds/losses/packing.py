"""What losses work on: packed tokens without padding, and the activations that an encoder hands out.

Legend of shape suffixes here: T packed tokens, N heads, D student head size, E teacher head size, H hidden,
B sequences, S padded length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Run:
    """Neighbouring segments of equal lengths, so that one batched operation serves them all."""

    start: int
    count: int
    queries: int
    keys: int

    def heads(self, x_TND: Tensor) -> Tensor:
        """This run's part of a packed tensor as (B, N, S, D), a view."""
        tokens = x_TND[self.start : self.start + self.count * self.queries]
        return tokens.view(self.count, self.queries, *x_TND.shape[1:]).transpose(1, 2)


@dataclass(frozen=True)
class Segments:
    """Where packed sequences lie: `lengths` tokens each, of which the first `keys` may be attended to.

    The two differ only for sequences that carry their padding along (`tinybert_compat`).
    """

    lengths: tuple[int, ...]
    keys: tuple[int, ...]

    @staticmethod
    def packed(lengths: list[int] | tuple[int, ...]) -> Segments:
        """Segments without any padding."""
        return Segments(tuple(lengths), tuple(lengths))

    def runs(self) -> Iterator[Run]:
        """The segments in order, neighbours of equal lengths taken together."""
        start, i = 0, 0
        while i < len(self.lengths):
            j = i
            while j < len(self.lengths) and (self.lengths[j], self.keys[j]) == (self.lengths[i], self.keys[i]):
                j += 1
            yield Run(start, j - i, self.lengths[i], self.keys[i])
            start += (j - i) * self.lengths[i]
            i = j


class Totals(NamedTuple):
    """What means divide by: tokens and (query, key) pairs of the whole global batch, over all ranks."""

    tokens: int
    pairs: int


@dataclass(frozen=True)
class Wanted:
    """Which activations an encoder shall hand out. Attention layers count from 1; hidden 0 is the embeddings."""

    scores: frozenset[int] = frozenset()
    """Layers whose queries and keys are wanted."""
    values: frozenset[int] = frozenset()
    hidden: frozenset[int] = frozenset()

    @staticmethod
    def union(many: Iterable[Wanted]) -> Wanted:
        """All that any of them wants."""
        wishes = list(many)
        return Wanted(*(frozenset().union(*(getattr(w, of) for w in wishes)) for of in ("scores", "values", "hidden")))

    @property
    def last_hidden(self) -> int:
        """The deepest hidden state that has to be computed."""
        return max((*self.hidden, *(layer - 1 for layer in self.scores | self.values)), default=0)


@dataclass
class Taps:
    """Activations by layer: queries, keys, values (T, N, D) and hidden states (T, H)."""

    query: dict[int, Tensor] = field(default_factory=dict)
    key: dict[int, Tensor] = field(default_factory=dict)
    value: dict[int, Tensor] = field(default_factory=dict)
    hidden: dict[int, Tensor] = field(default_factory=dict)


def accumulator(x: Tensor) -> torch.dtype:
    """fp32, or fp64 for fp64 input: in no lower precision may a loss be formed."""
    return torch.promote_types(torch.float32, x.dtype)
