"""Student, projection and loss as one module, so that ZeRO-3 finds the loss inside what it manages."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertModel

from etd_ds.bert.encoder import Packed, encode
from etd_ds.extract.closed_form import Affine
from etd_ds.kernels.linear import linear
from etd_ds.losses import Objective, Segments, Taps, Totals, Wanted, terms

# Of the projection W [ETD §4.1, TinyBERT's code].
PROJECTION_STD = 0.02


class Distiller(nn.Module):
    """A student that learns the teacher's activations [ETD Eq. 4]; `projection` is W, dropped on export."""

    def __init__(
        self,
        student: BertModel,
        objective: Objective,
        *,
        teacher_hidden: int,
        dropout: float,
        seed: int,
        fitted: Affine | None = None,
        compiled: bool = False,
    ) -> None:
        """`fitted`, W (teacher hidden, student hidden) and b, is where the projection starts instead of a draw."""
        super().__init__()
        self.bert = student
        self.objective = objective
        self.dropout, self.compiled = dropout, compiled
        self.projection: nn.Linear | None = None
        if objective.hidden:
            self.projection = nn.Linear(student.config.hidden_size, teacher_hidden)
            generator = torch.Generator().manual_seed(seed)
            nn.init.normal_(self.projection.weight, std=PROJECTION_STD, generator=generator)
            nn.init.zeros_(self.projection.bias)
            if fitted is not None:
                self.projection.load_state_dict({"weight": fitted.weight_GF, "bias": fitted.bias_G})
        self._freeze_unreached()

    def forward(self, packed: Packed, teacher: Taps, totals: Totals) -> tuple[Tensor, Tensor]:
        """(loss, its terms in the order of `names`, detached): this batch's share of the global means."""
        dropout = self.dropout if self.training else 0.0
        taps = encode(self.bert, packed, self.objective.student, dropout=dropout, compiled=self.compiled)
        found = terms(self.objective, taps, teacher, self._project, packed.segments, totals)
        stacked = torch.stack([found[name] for name in self.names])
        return stacked.sum(), stacked.detach()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the loss's terms."""
        return tuple(name for name in ("attention", "hidden", "attention_kl", "value_kl") if vars(self.objective)[name])

    def _project(self, hidden_TH: Tensor) -> Tensor:
        assert self.projection is not None
        return linear(self.projection, hidden_TH)

    def _freeze_unreached(self) -> None:
        """Parameters that the loss cannot reach (MiniLM: all behind the last values) must not be decayed either."""
        two = torch.zeros(2, dtype=torch.long)
        with torch.enable_grad():
            taps = encode(self.bert, Packed(two, two, two, Segments.packed([2])), self.objective.student)
            outputs = [x for kind in vars(taps).values() for x in kind.values()]
            parameters = list(self.bert.parameters())
            grads = torch.autograd.grad(sum(x.sum() for x in outputs), parameters, allow_unused=True)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.requires_grad_(grad is not None)


class Guide(nn.Module):
    """The frozen teacher: it hands out its activations, without a graph, and nothing that the loss does not need."""

    def __init__(self, teacher: BertModel, *objectives: Objective, compiled: bool = False) -> None:
        super().__init__()
        self.compiled = compiled
        self.bert = teacher.train(False).requires_grad_(False)
        self.wanted = Wanted.union(objective.teacher for objective in objectives)

    @torch.no_grad()
    def forward(self, packed: Packed) -> Taps:
        return encode(self.bert, packed, self.wanted, compiled=self.compiled)


def encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The student's parameters that learned, by `BertModel`'s names, from the engine's gathered state."""
    prefix = "parameter.bert."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
