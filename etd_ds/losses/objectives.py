"""The objectives as one table: which activations of student and teacher are compared, and by which loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from etd_ds.losses.packing import Segments, Taps, Totals, Wanted, accumulator
from etd_ds.losses.relations import relation_kl_sum
from etd_ds.losses.scores import score_mse_sum

# (student layer, teacher layer), 1-based; hidden layer 0 is the embeddings' output
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Objective:
    """Which layers are compared by which loss. Each non-empty field is a term of that name, with weight 1."""

    attention: Pairs = ()
    """MSE of pre-softmax scores."""
    hidden: Pairs = ()
    """MSE of hidden states, the student's projected by one shared W."""
    attention_kl: Pairs = ()
    """KL of the attention distributions."""
    value_kl: Pairs = ()
    """KL of the value relations softmax(V Vᵀ/√d)."""

    @property
    def student(self) -> Wanted:
        """What the student's forward pass shall hand out."""
        return self._wanted(0)

    @property
    def teacher(self) -> Wanted:
        """What the teacher's forward pass shall hand out."""
        return self._wanted(1)

    def _wanted(self, side: int) -> Wanted:
        return Wanted(
            scores=frozenset(pair[side] for pair in self.attention + self.attention_kl),
            values=frozenset(pair[side] for pair in self.value_kl),
            hidden=frozenset(pair[side] for pair in self.hidden),
        )


# name in the spec -> objective for (student layers M, teacher layers N)
OBJECTIVES: dict[str, Callable[[int, int], Objective]] = {
    # [ETD Eq. 4]
    "last_layer": lambda M, N: Objective(attention=((M, N),), hidden=((M, N),)),
    # [TinyBERT §4.1] with the uniform map m → m·N/M
    "tinybert": lambda M, N: Objective(
        attention=tuple((m, m * N // M) for m in range(1, M + 1)),
        hidden=tuple((m, m * N // M) for m in range(M + 1)),
    ),
    # [MiniLM §3.1, §3.2]
    "minilm": lambda M, N: Objective(attention_kl=((M, N),), value_kl=((M, N),)),
}


def terms(
    objective: Objective,
    student: Taps,
    teacher: Taps,
    project: Callable[[Tensor], Tensor],
    segments: Segments,
    totals: Totals,
) -> dict[str, Tensor]:
    """The objective's named terms, each a scalar: sums over this batch divided by the `totals` of the global one.

    So the terms of all micro batches of all ranks add up to the loss of the global batch, however it is split.
    """
    found: dict[str, Tensor] = {}
    if objective.attention:
        q_s, k_s, q_t, k_t = student.query, student.key, teacher.query, teacher.key
        heads = q_s[objective.attention[0][0]].shape[1]
        found["attention"] = _sum(
            score_mse_sum(q_s[m], k_s[m], q_t[n], k_t[n], segments) for m, n in objective.attention
        ) / (heads * totals.pairs)
    if objective.hidden:
        width = teacher.hidden[objective.hidden[0][1]].shape[-1]
        found["hidden"] = _sum(
            _square_sum(project(student.hidden[m]), teacher.hidden[n]) for m, n in objective.hidden
        ) / (width * totals.tokens)
    for name, pairs, query, key in (
        ("attention_kl", objective.attention_kl, "query", "key"),
        ("value_kl", objective.value_kl, "value", "value"),
    ):
        if pairs:
            q_s, k_s, q_t, k_t = (getattr(taps, of) for taps in (student, teacher) for of in (query, key))
            heads = q_s[pairs[0][0]].shape[1]
            summed = _sum(relation_kl_sum(q_s[m], k_s[m], q_t[n], k_t[n], segments) for m, n in pairs)
            found[name] = summed / (heads * totals.tokens)
    return found


def _square_sum(a_TH: Tensor, b_TH: Tensor) -> Tensor:
    dtype = accumulator(a_TH)
    return (a_TH.to(dtype) - b_TH.to(dtype)).square().sum()


def _sum(values: object) -> Tensor:
    total = sum(values)  # type: ignore[call-overload]
    assert isinstance(total, Tensor)
    return total
