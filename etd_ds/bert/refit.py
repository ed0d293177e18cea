"""After the cut: a student's parameters fitted in closed form to its teacher's activations, layer by layer.

Beyond the paper. Cutting takes neurons away and leaves the others as if nothing had happened; here what is left is
solved for anew, by least squares on a few thousand tokens, in the order in which a forward pass meets it: every map is
fitted to what really reaches it. No gradient, no step size; seconds instead of the first part of training.

Legend of shape suffixes: T tokens, H a hidden size, C a context vector (heads × head size), F feed-forward neurons,
N heads, E and D a head's size in teacher and student.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertLayer, BertModel

from etd_ds.bert.encoder import Attention, Packed, embedded
from etd_ds.contract import spec
from etd_ds.extract import closed_form
from etd_ds.extract.closed_form import Affine
from etd_ds.extract.plan import Cut, LayerCut

Pairs = tuple[tuple[int, int], ...]


class Trace(NamedTuple):
    """What one layer computes, over all tokens."""

    query_TC: Tensor
    key_TC: Tensor
    value_TC: Tensor
    attended_TH: Tensor
    """What attention's LayerNorm gets."""
    middle_TH: Tensor
    """What it gives."""
    inner_TF: Tensor
    """Before the activation."""
    summed_TH: Tensor
    """What the last LayerNorm gets."""
    hidden_TH: Tensor
    """What the layer gives."""


@torch.no_grad()
def refit(
    teacher: BertModel, student: BertModel, cut: Cut, packed: Packed, *, level: spec.Refit, hidden: Pairs
) -> Affine | None:
    """Fit `student`, which `cut` took from `teacher`, in place, as far as `level` says (`JobSpec.refit`).

    `hidden` are the (student layer, teacher layer) pairs that the objective compares; the answer is the projection
    W (d_T, d_S) and b of the loss fitted to them [ETD Eq. 4], or None if there are none. `cut` must be consistent.
    """
    assert cut.consistent
    fit = _Fit(cut.embeddings_H, _upto(level))
    x_TH, z_TH = embedded(teacher, packed), embedded(student, packed)
    x_TH = teacher.embeddings.LayerNorm(x_TH)
    fit.norm(student.embeddings.LayerNorm, z_TH, x_TH)
    z_TH = student.embeddings.LayerNorm(z_TH)
    attention = Attention(packed.segments, x_TH)
    of_teacher, of_student = {0: x_TH}, {0: z_TH}
    mine = {
        kept.teacher_layer: (m, layer, kept)
        for m, (layer, kept) in enumerate(zip(_layers(student), cut.layers, strict=True), 1)
    }
    for n, layer in enumerate(_layers(teacher), 1):
        trace = run(layer, x_TH, attention)
        x_TH = trace.hidden_TH
        if any(n == wanted for _, wanted in hidden):
            of_teacher[n] = x_TH
        if n in mine:
            m, own, kept = mine[n]
            z_TH = fit.layer(own, z_TH, layer, trace, kept, attention)
            of_student[m] = z_TH
    if not hidden:
        return None
    return closed_form.affine(
        torch.cat([of_student[m] for m, _ in hidden]), torch.cat([of_teacher[n] for _, n in hidden])
    )


def run(layer: BertLayer, x_TH: Tensor, attention: Attention) -> Trace:
    """A stock layer's forward pass with everything that it computes."""
    own, output = layer.attention.self, layer.attention.output
    q_TC, k_TC, v_TC = own.query(x_TH), own.key(x_TH), own.value(x_TH)
    attended_TH = output.dense(_attend(attention, q_TC, k_TC, v_TC, own.attention_head_size)) + x_TH
    middle_TH = output.LayerNorm(attended_TH)
    inner_TF = layer.intermediate.dense(middle_TH)
    summed_TH = layer.output.dense(layer.intermediate.intermediate_act_fn(inner_TF)) + middle_TH
    return Trace(q_TC, k_TC, v_TC, attended_TH, middle_TH, inner_TF, summed_TH, layer.output.LayerNorm(summed_TH))


class _Fit:
    """One student's fit: its hidden dimensions among the teacher's, and which kinds of parameters are solved for."""

    def __init__(self, kept_H: Tensor, kinds: frozenset[str]) -> None:
        self.kept_H = kept_H
        self.outputs, self.norms, self.all = ("outputs" in kinds, "norms" in kinds, "all" in kinds)

    def norm(self, norm: nn.LayerNorm, x_TH: Tensor, target_TH: Tensor) -> None:
        """γ and β, so that what leaves is nearest to the kept dimensions of what leaves the teacher's."""
        if self.norms:
            norm.weight[:], norm.bias[:] = closed_form.layer_norm(x_TH, self._kept(target_TH), eps=norm.eps)

    def layer(
        self, own: BertLayer, z_TH: Tensor, teacher: BertLayer, trace: Trace, kept: LayerCut, attention: Attention
    ) -> Tensor:
        """One layer, from its input `z_TH` on; its output with the parameters that it has then."""
        mine, output = own.attention.self, own.attention.output
        if self.all:
            for linear, wanted_TC in zip(
                (mine.query, mine.key, mine.value), self._heads(own, teacher, trace), strict=True
            ):
                _set(linear, closed_form.affine(z_TH, wanted_TC))
        q_TC, k_TC, v_TC = mine.query(z_TH), mine.key(z_TH), mine.value(z_TH)
        context_TC = _attend(attention, q_TC, k_TC, v_TC, mine.attention_head_size)
        if self.outputs:
            _set(output.dense, closed_form.affine(context_TC, self._kept(trace.attended_TH) - z_TH))
        attended_TH = output.dense(context_TC) + z_TH
        self.norm(output.LayerNorm, attended_TH, trace.middle_TH)
        middle_TH = output.LayerNorm(attended_TH)
        if self.all:
            _set(own.intermediate.dense, closed_form.affine(middle_TH, trace.inner_TF[:, kept.ffn_F]))
        active_TF = own.intermediate.intermediate_act_fn(own.intermediate.dense(middle_TH))
        if self.outputs:
            _set(own.output.dense, closed_form.affine(active_TF, self._kept(trace.summed_TH) - middle_TH))
        summed_TH = own.output.dense(active_TF) + middle_TH
        self.norm(own.output.LayerNorm, summed_TH, trace.hidden_TH)
        hidden_TH: Tensor = own.output.LayerNorm(summed_TH)
        return hidden_TH

    def _heads(self, own: BertLayer, teacher: BertLayer, trace: Trace) -> tuple[Tensor, Tensor, Tensor]:
        """What queries, keys and values shall be, (T, C) each: of every head the directions that matter most.

        A student's head has fewer dimensions than its teacher's. Instead of some of the components, it gets those
        directions that carry most of the scores (queries and keys) and of the head's output (values).
        """
        D, E = own.attention.self.attention_head_size, teacher.attention.self.attention_head_size
        scale = (D / E) ** 0.25  # scores are divided by √D instead of √E; queries and keys share the difference
        output_HC = teacher.attention.output.dense.weight[self.kept_H]
        queries, keys, values = [], [], []
        for q_TE, k_TE, v_TE, output_HE in zip(
            *(torch.split(x, E, dim=1) for x in (trace.query_TC, trace.key_TC, trace.value_TC, output_HC)), strict=True
        ):
            a_ED, b_ED = closed_form.low_rank_scores(q_TE, k_TE, D)
            queries.append(q_TE @ a_ED * scale)
            keys.append(k_TE @ b_ED * scale)
            values.append(v_TE @ closed_form.low_rank_output(v_TE, output_HE, D))
        return torch.cat(queries, 1), torch.cat(keys, 1), torch.cat(values, 1)

    def _kept(self, x_TH: Tensor) -> Tensor:
        return x_TH[:, self.kept_H]


def _upto(level: spec.Refit) -> frozenset[str]:
    """The level and those below it."""
    levels = get_args(spec.Refit)
    return frozenset(levels[: levels.index(level) + 1])


def _set(linear: nn.Linear, fitted: Affine) -> None:
    linear.weight[:], linear.bias[:] = fitted


def _layers(bert: BertModel) -> list[BertLayer]:
    return cast("list[BertLayer]", list(bert.encoder.layer))


def _attend(attention: Attention, q_TC: Tensor, k_TC: Tensor, v_TC: Tensor, size: int) -> Tensor:
    """(T, C) the context of heads of that size."""
    return attention(*(x.view(len(x), -1, size) for x in (q_TC, k_TC, v_TC))).flatten(1)


def fitted_state(student: BertModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the encoder's parameters as they are in `student` now; heads stay as they were cut."""
    own = student.state_dict()
    return {name: own[name].cpu() if name in own else value for name, value in state.items()}
