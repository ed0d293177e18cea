"""A lean forward pass over the modules of a stock `BertModel`: packed tokens, and only the activations asked for.

Their parameters are used, not copied, so what is trained is what is saved; where ZeRO-3 holds them, the modules
themselves are called, whose hooks gather them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import GELUActivation
from transformers.models.bert.modeling_bert import BertLayer, BertModel

from etd_ds.kernels import half
from etd_ds.kernels.linear import feed_forward, linear, rows
from etd_ds.losses import Segments, Taps, Wanted


@dataclass(frozen=True)
class Packed:
    """Sequences laid end to end without padding: ids, positions and token types, each (T,) int64."""

    ids_T: Tensor
    positions_T: Tensor
    types_T: Tensor
    segments: Segments

    def to(self, device: torch.device) -> Packed:
        """The same on another device."""
        ids_T, positions_T, types_T = (
            x.to(device, non_blocking=True) for x in (self.ids_T, self.positions_T, self.types_T)
        )
        return Packed(ids_T, positions_T, types_T, self.segments)


def encode(bert: BertModel, packed: Packed, wanted: Wanted, *, dropout: float = 0.0, compiled: bool = False) -> Taps:
    """Activations of the layers in `wanted`: q, k, v as (T, N, D), hidden states as (T, H).

    Nothing deeper than they is computed. `dropout` is the probability where stock BERT drops hidden states;
    attention probabilities are never dropped. `compiled` fuses what acts on each token alone, by torch.compile.
    """
    mix = _compiled_mix() if compiled else _mix
    taps = Taps()
    x_TH = _drop(bert.embeddings.LayerNorm(embedded(bert, packed)), dropout)
    T = len(x_TH)
    if 0 in wanted.hidden:
        taps.hidden[0] = x_TH
    attention = Attention(packed.segments, x_TH)
    if x_TH.device.type == "cpu":  # a few rows more, for few sizes
        x_TH = _padded(x_TH, rows(T))
    for number, layer in enumerate(cast("list[BertLayer]", bert.encoder.layer), 1):
        last = number > wanted.last_hidden
        if last and number not in wanted.scores | wanted.values:
            break
        x_TH = _layer(layer, number, x_TH, attention, mix, wanted, taps, last=last, dropout=dropout)
        if last:
            break
        if number in wanted.hidden:
            taps.hidden[number] = x_TH[:T]
    return taps


def embedded(bert: BertModel, packed: Packed) -> Tensor:
    """(T, H) the sum of the embeddings, which their LayerNorm gets."""
    of = bert.embeddings
    x_TH: Tensor = (
        of.word_embeddings(packed.ids_T)
        + of.token_type_embeddings(packed.types_T)
        + of.position_embeddings(packed.positions_T)
    )
    return x_TH


def _layer(
    layer: BertLayer,
    number: int,
    x_TH: Tensor,
    attention: Attention,
    mix: Callable[[BertLayer, Tensor, Tensor, float], Tensor],
    wanted: Wanted,
    taps: Taps,
    *,
    last: bool,
    dropout: float,
) -> Tensor:
    """One encoder layer; of the `last` one only the projections that are wanted."""
    projections = layer.attention.self
    size = projections.attention_head_size

    def project(module: torch.nn.Linear) -> Tensor:
        return linear(module, x_TH).view(len(x_TH), -1, size)[: attention.tokens]

    if not last or number in wanted.scores:
        q_TND, k_TND = project(projections.query), project(projections.key)
    if not last or number in wanted.values:
        v_TND = project(projections.value)
    if number in wanted.scores:
        taps.query[number], taps.key[number] = q_TND, k_TND
    if number in wanted.values:
        taps.value[number] = v_TND
    if last:
        return x_TH
    context_TH = _padded(attention(q_TND, k_TND, v_TND).flatten(1), len(x_TH))
    return mix(layer, context_TH, x_TH, dropout)


def _mix(layer: BertLayer, context_TH: Tensor, x_TH: Tensor, dropout: float) -> Tensor:
    """The rest of a layer after its attention: all that acts on each token alone."""
    output = layer.attention.output
    x_TH = output.LayerNorm(_drop(linear(output.dense, context_TH), dropout) + x_TH)
    inner = layer.intermediate
    if isinstance(inner.intermediate_act_fn, GELUActivation):
        y_TH = feed_forward(inner.dense, layer.output.dense, x_TH)
    else:
        y_TH = linear(layer.output.dense, inner.intermediate_act_fn(linear(inner.dense, x_TH)))
    result_TH: Tensor = layer.output.LayerNorm(_drop(y_TH, dropout) + x_TH)
    return result_TH


@functools.cache
def _compiled_mix() -> Callable[[BertLayer, Tensor, Tensor, float], Tensor]:
    import torch._dynamo

    # each shape is compiled for itself, with gradients and without; beyond 8, the default, torch would compile nothing
    torch._dynamo.config.recompile_limit = 64
    # dynamic: each batch has another number of tokens
    return torch.compile(_mix, dynamic=True)


def _padded(x_TH: Tensor, rows: int) -> Tensor:
    return x_TH if len(x_TH) == rows else F.pad(x_TH, (0, 0, 0, rows - len(x_TH)))


def _drop(x: Tensor, probability: float) -> Tensor:
    return F.dropout(x, probability) if probability else x


class Attention:
    """Softmax attention within each segment, on (T, N, D); made once per forward pass."""

    def __init__(self, segments: Segments, x: Tensor) -> None:
        self.segments, self.tokens = segments, len(x)
        # on a CPU torch's own walks backward up to four times faster over fp32 than over half precision
        self.dtype = torch.float32 if x.device.type == "cpu" and x.dtype in half.DTYPES else x.dtype
        # flash attention over segments of any length, for heads of sizes that 8 divides, 256 at most
        self.varlen: dict[str, Any] | None = None
        if half.serves(x) and segments.keys == segments.lengths:
            edges = torch.tensor((0, *segments.lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
            edges = edges.to(x.device, non_blocking=True)
            longest = max(segments.lengths)
            self.varlen = {"cu_seq_q": edges, "cu_seq_k": edges, "max_q": longest, "max_k": longest}

    def __call__(self, q_TND: Tensor, k_TND: Tensor, v_TND: Tensor) -> Tensor:
        D = q_TND.shape[-1]
        if self.varlen is not None and D % 8 == 0 and D <= 256:
            from torch.nn.attention.varlen import varlen_attn

            context = varlen_attn(q_TND, k_TND, v_TND, **self.varlen)
            assert isinstance(context, Tensor)
            return context
        parts = []
        for run in self.segments.runs():
            q, k, v = (run.heads(x).to(self.dtype) for x in (q_TND, k_TND, v_TND))
            context_BNSD = F.scaled_dot_product_attention(q, k[:, :, : run.keys], v[:, :, : run.keys])
            parts.append(context_BNSD.to(q_TND.dtype).transpose(1, 2).flatten(0, 1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)
