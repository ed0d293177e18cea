"""The student's parameters: slices of the teacher's, or fresh random ones. Tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from etd_ds.contract.shape import EncoderShape
from etd_ds.extract import axes
from etd_ds.extract.plan import Cut


def student(teacher: Mapping[str, Tensor], cut: Cut, parts: frozenset[axes.Part]) -> dict[str, Tensor]:
    """The student's parameters: each axis of each teacher parameter sliced by its index set [ETD §3.1].

    Nothing is rescaled. The MLM decoder has no weight of its own here: it is tied to the sliced word embeddings.
    """
    return {
        name: _slice(teacher[_teacher_name(name, cut)], names, _index_sets(name, cut))
        for name, names in axes.table(len(cut.layers), parts)
    }


def random(
    shape: EncoderShape, parts: frozenset[axes.Part], *, std: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Parameters as BERT starts: weights N(0, std), biases 0, LayerNorm scales 1 (the paper's Rand-Init)."""
    state: dict[str, Tensor] = {}
    for name, size in axes.shapes(shape, parts).items():
        if name.endswith("LayerNorm.weight"):
            state[name] = torch.ones(size)
        elif name.endswith("bias"):
            state[name] = torch.zeros(size)
        else:
            state[name] = torch.empty(size).normal_(0.0, std, generator=generator)
    return state


def _teacher_name(name: str, cut: Cut) -> str:
    m = axes.layer_of(name)
    if m is None:
        return name
    return name.replace(f"{axes.LAYER}{m}.", f"{axes.LAYER}{cut.layers[m].teacher_layer - 1}.", 1)


def _index_sets(name: str, cut: Cut) -> dict[str, Tensor]:
    sets = {"He": cut.embeddings_H, "Ht": cut.top_H}
    m = axes.layer_of(name)
    if m is not None:
        layer = cut.layers[m]
        sets |= {"Ha": layer.attention_H, "Hf": layer.ffn_H, "F": layer.ffn_F, "C": layer.context_C}
    return sets


def _slice(tensor: Tensor, names: axes.Axes, sets: Mapping[str, Tensor]) -> Tensor:
    for dim, axis in enumerate(names):
        if axis in sets:
            tensor = tensor.index_select(dim, sets[axis])
    return tensor.clone()
