"""Texts as the rows of tokens that BERT reads, and rows as padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tokenizers
import torch
from torch import Tensor
from typing_extensions import Self

from etd_ds.data import tokenize
from etd_ds.evaluate.examples import Labelled


class Row(NamedTuple):
    """One input: ids and token types, each (S,) int64."""

    ids_S: np.ndarray
    types_S: np.ndarray

    @classmethod
    def of(cls, first: Sequence[int], second: Sequence[int]) -> Self:
        """Both parts with their special tokens; `second` has type 1."""
        return cls(np.array([*first, *second]), np.repeat([0, 1], [len(first), len(second)]))


class Inputs(NamedTuple):
    """A padded batch, int64; `mask_BS` is 1 on tokens."""

    ids_BS: Tensor
    mask_BS: Tensor
    types_BS: Tensor


def labelled(tokenizer: tokenizers.Tokenizer, examples: Sequence[Labelled], max_tokens: int) -> list[Row]:
    """[CLS] a [SEP], or [CLS] a [SEP] b [SEP]; too long, the longer of the two loses its end first."""
    special = tokenize.special(tokenizer)
    firsts = tokenizer.encode_batch([row.a for row in examples], add_special_tokens=False)
    if all(row.b is None for row in examples):
        ids = [first.ids[: max_tokens - 2] for first in firsts]
        return [Row.of([special.cls, *a, special.sep], []) for a in ids]
    seconds = tokenizer.encode_batch([row.b or "" for row in examples], add_special_tokens=False)
    rows = []
    for first, second in zip(firsts, seconds, strict=True):
        a, b = _fitting(len(first.ids), len(second.ids), max_tokens - 3)
        rows.append(Row.of([special.cls, *first.ids[:a], special.sep], [*second.ids[:b], special.sep]))
    return rows


def _fitting(a: int, b: int, room: int) -> tuple[int, int]:
    """Lengths after the longer one (the second, when equal) lost tokens one by one until both fit."""
    if a + b <= room:
        return a, b
    half = room // 2
    if a >= room - half and b >= half:
        return room - half, half
    return (a, room - a) if a < b else (room - b, b)


def pad(rows: Sequence[Row], pad_id: int) -> Inputs:
    """Rows as one batch, padded to the longest."""
    B, S = len(rows), max(len(row.ids_S) for row in rows)
    ids_BS, mask_BS, types_BS = np.full((B, S), pad_id), np.zeros((B, S), np.int64), np.zeros((B, S), np.int64)
    for i, row in enumerate(rows):
        n = len(row.ids_S)
        ids_BS[i, :n], mask_BS[i, :n], types_BS[i, :n] = row.ids_S, 1, row.types_S
    return Inputs(*(torch.from_numpy(x) for x in (ids_BS, mask_BS, types_BS)))


def batches(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """Every row once, in a random order of batches; rows of one batch are of similar length, to save padding.

    Lengths are sorted within random pools of 32 batches only, so what is learnt together changes with each epoch.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    pool = 32 * batch_size
    found = []
    for first in range(0, len(order), pool):
        near = sorted(order[first : first + pool], key=lengths.__getitem__)
        found += [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
    return [found[i] for i in torch.randperm(len(found), generator=generator).tolist()]
