"""Importance of a BERT's neurons: the pre-training loss forward and backward, once, over real sentences [ETD §3.1].

One backward pass yields all scores. No parameter has a gradient: only the embeddings' output requires one, and hooks
read what passes. Sentences of equal length form a batch, so there is no padding at all. The last layer works only on
the rows that the loss looks at (its other rows have gradient zero, hence importance zero).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.bert.modeling_bert import BertLayer, BertModel

from etd_ds.extract import importance

IGNORED = -100
"""Label of a position that the MLM loss does not look at, as everywhere in PyTorch."""

DECODE_ROWS = 128
"""Masked positions that go through the decoder at a time."""

TRANSFORM = "cls.predictions.transform."
DECODER_BIAS = "cls.predictions.bias"

Tap = Callable[[str, int, Tensor], None]
"""(field of `Scores`, 0-based layer, activation)"""


@dataclass(frozen=True)
class Batch:
    """B token sequences of one length: masked ids, token types, MLM labels, and NSP labels or none."""

    ids_BS: Tensor
    types_BS: Tensor
    labels_BS: Tensor
    nsp_B: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        nsp_B = None if self.nsp_B is None else self.nsp_B.to(device)
        return Batch(self.ids_BS.to(device), self.types_BS.to(device), self.labels_BS.to(device), nsp_B)


def accumulate(
    scores: importance.Scores,
    bert: BertModel,
    heads: Mapping[str, Tensor],
    batch: Batch,
    *,
    nsp_weight: float,
    reduction: importance.Reduction,
) -> float:
    """Add one batch to `scores` in place; the loss Σ MLM + nsp_weight · Σ NSP of the batch.

    `heads` holds the `cls.` parameters by their stock names, and the pooler's where the batch has NSP labels.
    Sums, so that neither batch nor world size has an effect.
    """

    def tap(field: str, layer: int, h: Tensor) -> None:
        total_X = getattr(scores, field)[layer]
        value = h.detach()

        # A hook that returns a tensor would replace the gradient: this one returns None.
        def add(g: Tensor) -> None:
            total_X.add_(importance.contribution(value, g, reduction))

        h.register_hook(add)  # type: ignore[no-untyped-call]

    with torch.enable_grad():
        last_BMH, rows_BM = forward(bert, batch, tap)
        labels_BM = batch.labels_BS.gather(1, rows_BM)
        seen_BM = labels_BM != IGNORED
        z_nH = transform(heads, last_BMH[seen_BM], bert)
        loss, dz_nH, _ = decode(z_nH, bert.embeddings.word_embeddings.weight, heads[DECODER_BIAS], labels_BM[seen_BM])
        roots, gradients = [z_nH], [dz_nH]
        if batch.nsp_B is not None:
            # [CLS], position 0, is always the first chosen row.
            nsp = nsp_weight * next_sentence_loss(heads, last_BMH[:, 0], batch.nsp_B)
            roots, gradients = [*roots, nsp], [*gradients, torch.ones_like(nsp)]
            loss += nsp.item()
        torch.autograd.backward(roots, gradients)
    return loss


def forward(bert: BertModel, batch: Batch, tap: Tap | None = None) -> tuple[Tensor, Tensor]:
    """(B, M, H) output of the last layer at the rows that the loss needs, and (B, M) which rows these are.

    The needed rows of a sequence come first, ascending; shorter lists are filled up with rows that nobody reads.
    """
    needed_BS = batch.labels_BS != IGNORED
    if batch.nsp_B is not None:
        needed_BS[:, 0] = True
    rows = max(1, int(needed_BS.sum(1).max()))
    rows_BM = needed_BS.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :rows]
    embeddings = bert.embeddings
    with torch.no_grad():
        x_BSH = (
            embeddings.word_embeddings(batch.ids_BS)
            + embeddings.token_type_embeddings(batch.types_BS)
            + embeddings.position_embeddings.weight[: batch.ids_BS.shape[1]]
        )
        x_BSH = embeddings.LayerNorm(x_BSH)
    if tap is not None:
        x_BSH.requires_grad_(True)
    layers = cast("list[BertLayer]", list(bert.encoder.layer))
    for i, layer in enumerate(layers):
        x_BSH = _layer(layer, i, x_BSH, rows_BM if i == len(layers) - 1 else None, tap or _no_tap)
    return x_BSH, rows_BM


def _no_tap(field: str, layer: int, h: Tensor) -> None:
    return None


def _layer(layer: BertLayer, i: int, x_BSH: Tensor, rows_BM: Tensor | None, tap: Tap) -> Tensor:
    """One encoder layer in eval mode, for all rows or only for some."""
    attention, after = layer.attention.self, layer.attention.output
    D = attention.attention_head_size

    def heads(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, D).transpose(1, 2)

    tap("hidden_LH", i, x_BSH)
    own_BMH = x_BSH if rows_BM is None else x_BSH.gather(1, rows_BM[:, :, None].expand(-1, -1, x_BSH.shape[-1]))
    context_BNMD = F.scaled_dot_product_attention(
        heads(attention.query(own_BMH)), heads(attention.key(x_BSH)), heads(attention.value(x_BSH))
    )
    context_BMC = context_BNMD.transpose(1, 2).flatten(2)
    tap("head_LC", i, context_BMC)
    middle_BMH = after.LayerNorm(after.dense(context_BMC) + own_BMH)
    tap("middle_LH", i, middle_BMH)
    inner_BMF = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(middle_BMH))
    tap("ffn_LF", i, inner_BMF)
    out_BMH: Tensor = layer.output.LayerNorm(layer.output.dense(inner_BMF) + middle_BMH)
    return out_BMH


# ---------------------------------------------------------------- the losses


def transform(heads: Mapping[str, Tensor], y_nH: Tensor, bert: BertModel) -> Tensor:
    """(n, H) -> (n, H): the MLM head before its decoder: dense, activation, LayerNorm."""
    y_nH = F.linear(y_nH, heads[TRANSFORM + "dense.weight"], heads[TRANSFORM + "dense.bias"])
    y_nH = cast("list[BertLayer]", list(bert.encoder.layer))[0].intermediate.intermediate_act_fn(y_nH)
    weight, bias = heads[TRANSFORM + "LayerNorm.weight"], heads[TRANSFORM + "LayerNorm.bias"]
    return F.layer_norm(y_nH, weight.shape, weight, bias, bert.config.layer_norm_eps)


@torch.no_grad()
def decode(z_nH: Tensor, decoder_VH: Tensor, bias_V: Tensor, labels_n: Tensor) -> tuple[float, Tensor, Tensor]:
    """Σ cross-entropy of softmax(z·Wᵀ + b), and its gradients (n, H) in z and (V,) in b.

    Written out and in pieces, so that one small array exists at a time: logits, then probabilities minus labels.
    """
    loss, dz_nH, dbias_V = 0.0, torch.empty_like(z_nH), torch.zeros_like(bias_V)
    for first in range(0, len(z_nH), DECODE_ROWS):
        rows = slice(first, first + DECODE_ROWS)
        hit_n1 = labels_n[rows, None]
        p_nV = torch.addmm(bias_V, z_nH[rows], decoder_VH.T)
        largest_n1 = p_nV.amax(1, keepdim=True)
        logit_n1 = p_nV.gather(1, hit_n1)
        sum_n1 = p_nV.sub_(largest_n1).exp_().sum(1, keepdim=True)
        loss += (sum_n1.log() + largest_n1 - logit_n1).double().sum().item()
        p_nV.div_(sum_n1).scatter_add_(1, hit_n1, torch.full_like(sum_n1, -1.0))
        dz_nH[rows] = p_nV @ decoder_VH
        dbias_V += p_nV.sum(0)
    return loss, dz_nH, dbias_V


def next_sentence_loss(heads: Mapping[str, Tensor], first_BH: Tensor, nsp_B: Tensor) -> Tensor:
    """Σ cross-entropy of next-sentence prediction from the [CLS] rows, through the pooler."""
    pooled_BH = torch.tanh(F.linear(first_BH, heads["pooler.dense.weight"], heads["pooler.dense.bias"]))
    logits_B2 = F.linear(pooled_BH, heads["cls.seq_relationship.weight"], heads["cls.seq_relationship.bias"])
    return F.cross_entropy(logits_B2, nsp_B, reduction="sum")
