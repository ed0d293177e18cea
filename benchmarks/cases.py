"""One batch, one teacher, and a student to train on it, for `benchmarks.step`; and the arithmetic that it takes."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from benchmarks import peers
from etd_ds.bert.encoder import Packed
from etd_ds.distill.module import Distiller, Guide
from etd_ds.losses import OBJECTIVES, Segments, Wanted


class Size(NamedTuple):
    """(layers, hidden) of teacher and student; both have 12 heads."""

    teacher: tuple[int, int]
    student: tuple[int, int]
    vocab: int


SIZES = {
    "small": Size((6, 384), (3, 192), 8000),
    "base": Size((12, 768), (6, 384), 30522),  # [ETD §4.1], as is the next
    "base-4L": Size((12, 768), (4, 384), 30522),
}


class Shape(NamedTuple):
    """B sequences of up to S tokens, filled to `fill` on average."""

    B: int
    S: int
    fill: float


SHAPES = {"n 128": Shape(16, 128, 1.0), "n 512": Shape(4, 512, 1.0), "n 512, half padded": Shape(4, 512, 0.5)}


@dataclass
class Case:
    """The same batch as the peers take it and packed, on one device in one precision."""

    teacher: BertModel
    distiller: Distiller
    padded: peers.Padded
    packed: Packed

    @functools.cached_property
    def guide(self) -> Guide:
        """The teacher as our trainer holds it, made once."""
        return Guide(self.teacher, self.distiller.objective)

    @property
    def tokens(self) -> int:
        """Tokens that are no padding."""
        return sum(self.packed.segments.lengths)

    def clear(self) -> None:
        """Forget all gradients."""
        self.teacher.zero_grad()
        self.distiller.zero_grad()

    def gradients(self) -> list[Tensor]:
        """Of all that learns."""
        return [p.grad.clone() for p in self.distiller.parameters() if p.grad is not None]

    def to(self, place: torch.device | torch.dtype) -> Case:
        """A copy elsewhere, or in another precision."""
        other = copy.deepcopy(self)
        other.teacher.to(place)  # type: ignore[arg-type]
        other.distiller.to(place)
        if isinstance(place, torch.device):
            other.padded, other.packed = peers.Padded(*(x.to(place) for x in other.padded)), other.packed.to(place)
        return other

    def matmul_flops(self) -> int:
        """Floating-point operations of the matrix products that one step needs: 2 a multiplication and addition."""
        objective, lengths = self.distiller.objective, self.packed.segments.lengths
        pairs = sum(length * length for length in lengths)
        student = _encoder_flops(self.distiller.bert, objective.student, self.tokens, pairs)
        if self.distiller.projection is not None:
            student += 2 * self.tokens * self.distiller.projection.weight.numel()
        return 3 * student + _encoder_flops(self.teacher, objective.teacher, self.tokens, pairs)


def _encoder_flops(bert: BertModel, wanted: Wanted, tokens: int, pairs: int) -> int:
    """Of one forward pass: whole layers, and of a last one the projections that are wanted."""
    h, f = bert.config.hidden_size, bert.config.intermediate_size
    layer = 2 * tokens * (4 * h * h + 2 * h * f) + 4 * pairs * h
    behind = [2 for n in wanted.scores if n > wanted.last_hidden] + [1 for n in wanted.values if n > wanted.last_hidden]
    return wanted.last_hidden * layer + sum(behind) * 2 * tokens * h * h


def make_case(size: Size, shape: Shape, objective: str, seed: int = 0) -> Case:
    """Weights and tokens drawn from a seed; scores are of a trained BERT's order, so that losses are not degenerate."""
    torch.manual_seed(seed)
    teacher, student = _bert(size.vocab, *size.teacher), _bert(size.vocab, *size.student)
    compared = OBJECTIVES[objective](size.student[0], size.teacher[0])
    distiller = Distiller(student, compared, teacher_hidden=size.teacher[1], dropout=0.0, seed=seed)
    ids_BS = torch.randint(1, size.vocab, (shape.B, shape.S))
    types_BS = (torch.arange(shape.S) >= shape.S // 2).long().expand_as(ids_BS)
    spread = torch.linspace(2 * shape.fill - 1, 1.0, shape.B) if shape.fill < 1 else torch.ones(shape.B)
    lengths_B = (spread * shape.S).round().long().clamp(min=shape.S // 8)
    mask_BS = torch.arange(shape.S) < lengths_B[:, None]
    positions_BS = torch.arange(shape.S).expand_as(ids_BS)
    segments = Segments.packed(lengths_B.tolist())
    packed = Packed(ids_BS[mask_BS], positions_BS[mask_BS], types_BS[mask_BS], segments)
    return Case(teacher, distiller, peers.Padded(ids_BS * mask_BS, types_BS, mask_BS.long()), packed)


def _bert(vocab: int, layers: int, hidden: int) -> BertModel:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": 4 * hidden}
    config = BertConfig(vocab_size=vocab, num_attention_heads=12, **sizes)
    config._attn_implementation = "sdpa"
    bert = BertModel(config, add_pooling_layer=False).eval()
    for layer in bert.encoder.layer:
        for linear in (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value):
            nn.init.normal_(linear.weight, std=0.08 * (384 / hidden) ** 0.5)
    return bert
