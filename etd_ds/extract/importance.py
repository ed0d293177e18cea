"""First-order Taylor importance [ETD Eq. 5-8]: activations and their gradients in, scores out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from etd_ds.contract.shape import EncoderShape

Reduction = Literal["per_token", "per_sequence", "per_batch"]


@dataclass(frozen=True)
class Scores:
    """Importance of every neuron of a teacher, fp64, summed over the scored sentences."""

    ffn_LF: Tensor
    """Read after the activation function, at the input of `output.dense` [ETD Eq. 5]."""
    head_LC: Tensor
    """Read at the context vector, the input of `attention.output.dense` [ETD Eq. 6]."""
    hidden_LH: Tensor
    """Read at the tensor that enters each layer [ETD Eq. 7]; the sum over layers is Eq. 8."""
    middle_LH: Tensor
    """The same rule at the tensor that enters each feed-forward module; only wo-hidn-con needs it."""

    def as_dict(self) -> dict[str, Tensor]:
        """By name, for a file."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def zeros(shape: EncoderShape, device: torch.device | str = "cpu") -> Scores:
    """Empty accumulators, to be added to in place."""

    def zero(size: int) -> Tensor:
        return torch.zeros(shape.layers, size, dtype=torch.float64, device=device)

    return Scores(zero(shape.ffn), zero(shape.hidden), zero(shape.hidden), zero(shape.hidden))


def merged(parts: Iterable[Scores]) -> Scores:
    """Scores of all the sentences, from scores of disjoint shards of them."""
    first, *rest = parts
    total = {name: value.clone() for name, value in first.as_dict().items()}
    for part in rest:
        for name, value in part.as_dict().items():
            total[name] += value
    return Scores(**total)


def contribution(h_BSX: Tensor, g_BSX: Tensor, reduction: Reduction) -> Tensor:
    """(X,) fp64: what a batch adds to the scores of X neurons with activations h and gradients g = ∂L/∂h.

    `per_token` Σ|h·g|, the only one that does not depend on how sentences are batched;
    `per_sequence` Σ over sequences of |Σ over tokens h·g|; `per_batch` |Σ over tokens and sequences h·g|.
    Padding contributes nothing: its gradient is zero.
    """
    match reduction:
        case "per_token":
            return (h_BSX * g_BSX).abs_().sum(1).double().sum(0)
        case "per_sequence":
            return torch.einsum("bsx,bsx->bx", h_BSX, g_BSX).double().abs_().sum(0)
        case "per_batch":
            return torch.einsum("bsx,bsx->bx", h_BSX, g_BSX).double().sum(0).abs_()
