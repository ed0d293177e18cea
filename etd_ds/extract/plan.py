"""Which neurons are kept: index sets from scores or from a seeded draw [ETD §3.1], and their manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from etd_ds.contract import spec
from etd_ds.contract.shape import EncoderShape, teacher_layers
from etd_ds.extract.importance import Scores


@dataclass(frozen=True)
class LayerCut:
    """What one student layer keeps of its teacher layer. All indices ascend."""

    teacher_layer: int
    """1-based."""
    heads_ND: Tensor
    """Kept components of each head, counted within the head; one set for Q, K, V rows and output columns."""
    teacher_head_size: int
    ffn_F: Tensor
    attention_H: Tensor
    """Hidden dimensions of the attention module, of the feed-forward module below: the same with consistency."""
    ffn_H: Tensor

    @property
    def context_C(self) -> Tensor:
        """The kept components of all heads, counted in the teacher's context vector."""
        first_N = torch.arange(len(self.heads_ND)) * self.teacher_head_size
        return (self.heads_ND + first_N[:, None]).flatten()


@dataclass(frozen=True)
class Cut:
    """Every index set of one extraction."""

    layers: tuple[LayerCut, ...]
    embeddings_H: Tensor
    top_H: Tensor
    """Hidden dimensions of what leaves the last layer."""

    @property
    def consistent(self) -> bool:
        """Whether one set of hidden dimensions holds everywhere."""
        others = [self.top_H, *(h for layer in self.layers for h in (layer.attention_H, layer.ffn_H))]
        return all(torch.equal(self.embeddings_H, other) for other in others)

    def manifest(self) -> dict[str, Any]:
        """JSON form: ascending index lists into the teacher. `heads` counts components of the context vector, so that
        `query.weight[heads][:, hidden]` is the student's; index // teacher head size is the head.

        Only when modules differ, `hidden` is the embeddings' own set, each layer names `hidden_attention` and
        `hidden_ffn`, and `hidden_top` is the set of pooler, NSP and MLM transform.
        """
        layers: list[dict[str, Any]] = []
        for layer in self.layers:
            entry = {
                "teacher_layer": layer.teacher_layer,
                "heads": layer.context_C.tolist(),
                "ffn": layer.ffn_F.tolist(),
            }
            if not self.consistent:
                entry |= {"hidden_attention": layer.attention_H.tolist(), "hidden_ffn": layer.ffn_H.tolist()}
            layers.append(entry)
        extra = {} if self.consistent else {"hidden_top": self.top_H.tolist()}
        return {"hidden": self.embeddings_H.tolist(), **extra, "layers": layers}


Chooser = Callable[[spec.Neuron, int, int, int, int], Tensor]
"""(kind, teacher layer or 0 for the whole model, head or module, size, keep) -> ascending indices."""


def drawn(job: spec.JobSpec, teacher: EncoderShape, student: EncoderShape) -> Cut:
    """ETD-Rand: every set is a draw that depends on (seed, kind, teacher layer, head) alone."""

    def choose(kind: spec.Neuron, layer: int, part: int, size: int, keep: int) -> Tensor:
        digest = hashlib.sha256(f"{job.seed}/{kind}/{layer}/{part}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.randperm(size, generator=generator)[:keep].sort().values

    return _cut(job, teacher, student, choose)


def scored(job: spec.JobSpec, teacher: EncoderShape, student: EncoderShape, scores: Scores) -> Cut:
    """ETD-Impt [ETD Eq. 5-8]: every set holds the highest scores (of kinds in `job.reverse`, the lowest)."""
    heads_LND = scores.head_LC.view(-1, teacher.heads, teacher.head_size)

    def choose(kind: spec.Neuron, layer: int, part: int, size: int, keep: int) -> Tensor:
        match kind:
            case "ffn":
                values = scores.ffn_LF[layer - 1]
            case "head":
                values = heads_LND[layer - 1, part]
            case "hidden":
                by_module = (scores.hidden_LH, scores.middle_LH)
                values = scores.hidden_LH.sum(0) if layer == 0 else by_module[part][layer - 1]
        assert values.numel() == size
        return top(values, keep, reverse=kind in job.reverse)

    return _cut(job, teacher, student, choose)


def top(scores: Tensor, keep: int, *, reverse: bool = False) -> Tensor:
    """Ascending indices of the `keep` highest scores (reverse: lowest). The lower index wins a tie."""
    return torch.sort(scores, descending=not reverse, stable=True).indices[:keep].sort().values


ATTENTION, FEED_FORWARD = 0, 1


def _cut(job: spec.JobSpec, teacher: EncoderShape, student: EncoderShape, choose: Chooser) -> Cut:
    everywhere = choose("hidden", 0, 0, teacher.hidden, student.hidden)

    def hidden(layer: int, module: int) -> Tensor:
        """One set for the whole model, or this module's own (wo-hidn-con)."""
        if job.hidden_consistency:
            return everywhere
        return choose("hidden", layer, module, teacher.hidden, student.hidden)

    layers = tuple(
        LayerCut(
            teacher_layer=layer,
            heads_ND=torch.stack(
                [choose("head", layer, n, teacher.head_size, student.head_size) for n in range(teacher.heads)]
            ),
            teacher_head_size=teacher.head_size,
            ffn_F=choose("ffn", layer, 0, teacher.ffn, student.ffn),
            attention_H=hidden(layer, ATTENTION),
            ffn_H=hidden(layer, FEED_FORWARD),
        )
        for layer in teacher_layers(job, teacher)
    )
    # What the embeddings give is the input of the teacher's first layer; what leaves the last layer is the output
    # of the student's last feed-forward module.
    return Cut(layers, embeddings_H=hidden(1, ATTENTION), top_H=layers[-1].ffn_H)
