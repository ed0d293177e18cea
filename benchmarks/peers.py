"""The ways in which others compute a distillation step, over the same stock weights, for `benchmarks.step`."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import BertModel

from etd_ds.losses import definition


class Padded(NamedTuple):
    """One batch as the peers take it."""

    ids_BS: Tensor
    types_BS: Tensor
    mask_BS: Tensor


class Published(NamedTuple):
    """What the public TinyBERT model returns: hidden states and masked pre-softmax scores of EVERY layer."""

    hidden: list[Tensor]
    scores: list[Tensor]
    value: Tensor
    """Of the last layer, for MiniLM."""


def published_step(
    name: str,
    teacher: BertModel,
    student: BertModel,
    projection: nn.Linear,
    batch: Padded,
    *,
    teacher_graph: bool,
) -> Tensor:
    """Loss and gradients in the way of TinyBERT's `general_distill.py`, of objective last_layer or minilm.

    Its teacher builds a graph and is detached afterwards; without `teacher_graph` that one mistake is mended.
    """
    s = _published(student, batch)
    with nullcontext() if teacher_graph else torch.no_grad():
        t = _published(teacher, batch)
    t = Published([x.detach() for x in t.hidden], [x.detach() for x in t.scores], t.value.detach())
    mask_BS = batch.mask_BS.to(s.value.dtype)
    if name == "last_layer":
        loss = _score_mse(s.scores[-1], t.scores[-1], mask_BS)
        # it projects every hidden state; only the last is compared here
        projected = [projection(h) for h in s.hidden]
        loss = loss + definition.hidden_mse(projected[-1], t.hidden[-1], mask_BS)
    else:
        loss = _kl(s.scores[-1], t.scores[-1], mask_BS)
        loss = loss + _kl(_relation(s.value, mask_BS), _relation(t.value, mask_BS), mask_BS)
    loss.backward()
    return loss.detach()


def stock_step(name: str, teacher: BertModel, student: BertModel, projection: nn.Linear, batch: Padded) -> Tensor:
    """Loss and gradients by stock Hugging Face BERT on its eager path, and by the losses' literal definitions."""
    s = _stock(student, batch)
    with torch.no_grad():
        t = _stock(teacher, batch)
    mask_BS = batch.mask_BS.to(s[0].dtype)
    (h_s, q_s, k_s, v_s), (h_t, q_t, k_t, v_t) = s, t
    if name == "last_layer":
        loss = definition.score_mse(q_s, k_s, q_t, k_t, mask_BS)
        loss = loss + definition.hidden_mse(projection(h_s), h_t, mask_BS)
    else:
        loss = definition.relation_kl(q_s, k_s, q_t, k_t, mask_BS)
        loss = loss + definition.relation_kl(v_s, v_s, v_t, v_t, mask_BS)
    loss.backward()
    return loss.detach()


def _published(bert: BertModel, batch: Padded) -> Published:
    """TinyBERT's `modeling.py`; its LayerNorm is Apex's fused one, for which torch's stands here."""
    ids_BS, types_BS, mask_BS = batch
    embeddings = bert.embeddings
    positions_S = torch.arange(ids_BS.shape[1], device=ids_BS.device)
    x_BSH = embeddings.word_embeddings(ids_BS) + embeddings.position_embeddings(positions_S)
    x_BSH = embeddings.LayerNorm(x_BSH + embeddings.token_type_embeddings(types_BS))
    bias_B11S = _bias(mask_BS.to(x_BSH.dtype))
    hidden, all_scores = [x_BSH], []
    for layer in bert.encoder.layer:
        block = layer.attention.self
        q_BNSD, k_BNSD, v_BNSD = (
            linear(x_BSH).unflatten(-1, (-1, block.attention_head_size)).transpose(1, 2)
            for linear in (block.query, block.key, block.value)
        )
        scores_BNSS = torch.matmul(q_BNSD, k_BNSD.transpose(-1, -2)) / math.sqrt(block.attention_head_size)
        scores_BNSS = scores_BNSS + bias_B11S
        context_BSH = torch.matmul(scores_BNSS.softmax(-1), v_BNSD).transpose(1, 2).flatten(2)
        x_BSH = layer.attention.output.LayerNorm(layer.attention.output.dense(context_BSH) + x_BSH)
        inner_BSF = layer.intermediate.dense(x_BSH)
        inner_BSF = inner_BSF * 0.5 * (1.0 + torch.erf(inner_BSF / math.sqrt(2.0)))
        x_BSH = layer.output.LayerNorm(layer.output.dense(inner_BSF) + x_BSH)
        hidden.append(x_BSH)
        all_scores.append(scores_BNSS)
    return Published(hidden, all_scores, v_BNSD)


def _stock(bert: BertModel, batch: Padded) -> tuple[Tensor, ...]:
    """Last hidden state, queries, keys and values (by hooks, as (B, S, N, D)); everything else is computed too."""
    found: list[Tensor] = []
    block = bert.encoder.layer[-1].attention.self

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        found.append(output.unflatten(-1, (bert.config.num_attention_heads, -1)))

    handles = [linear.register_forward_hook(keep) for linear in (block.query, block.key, block.value)]
    bert.config._attn_implementation = "eager"
    output = bert(
        batch.ids_BS,
        token_type_ids=batch.types_BS,
        attention_mask=batch.mask_BS,
        output_hidden_states=True,
        output_attentions=True,
    )
    bert.config._attn_implementation = "sdpa"
    for handle in handles:
        handle.remove()
    return (output.last_hidden_state, *found)


def _bias(mask_BS: Tensor) -> Tensor:
    return (1.0 - mask_BS[:, None, None, :]) * -10000.0


def _score_mse(s_BNSS: Tensor, t_BNSS: Tensor, mask_BS: Tensor) -> Tensor:
    """TinyBERT's loss of two score tensors, over valid pairs."""
    s_BNSS, t_BNSS = (torch.where(x <= -1e2, torch.zeros_like(x), x) for x in (s_BNSS, t_BNSS))
    valid_B1SS = mask_BS[:, None, :, None] * mask_BS[:, None, None, :]
    square_BNSS = (s_BNSS - t_BNSS).square() * valid_B1SS
    return square_BNSS.sum() / (s_BNSS.shape[1] * valid_B1SS.sum())


def _relation(v_BNSD: Tensor, mask_BS: Tensor) -> Tensor:
    return v_BNSD @ v_BNSD.mT / v_BNSD.shape[-1] ** 0.5 + _bias(mask_BS)


def _kl(s_BNSS: Tensor, t_BNSS: Tensor, mask_BS: Tensor) -> Tensor:
    """MiniLM's loss of two score tensors, over valid queries."""
    kl_BNSS = torch.nn.functional.kl_div(s_BNSS.log_softmax(-1), t_BNSS.softmax(-1), reduction="none")
    return (kl_BNSS.sum(-1) * mask_BS[:, None]).sum() / (s_BNSS.shape[1] * mask_BS.sum())
