"""The ways in which others compute a distillation step, over the same stock weights, for `benchmarks.step`."""

from __future__ import annotations

from collections.abc import Callable
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


class Outputs(NamedTuple):
    """Of every layer, as the public TinyBERT code returns them."""

    hidden: list[Tensor]
    query: list[Tensor]
    key: list[Tensor]
    value: list[Tensor]


def eager(bert: BertModel, batch: Padded) -> Outputs:
    """The public TinyBERT model's forward pass: padded, scores and probabilities formed in every layer."""
    ids_BS, types_BS, mask_BS = batch
    embeddings = bert.embeddings
    positions_S = torch.arange(ids_BS.shape[1], device=ids_BS.device)
    x_BSH = embeddings.word_embeddings(ids_BS) + embeddings.position_embeddings(positions_S)
    x_BSH = embeddings.LayerNorm(x_BSH + embeddings.token_type_embeddings(types_BS))
    bias_B11S = (1.0 - mask_BS[:, None, None, :].to(x_BSH.dtype)) * -10000.0
    found = Outputs([x_BSH], [], [], [])
    for layer in bert.encoder.layer:
        block = layer.attention.self
        q, k, v = (
            linear(x_BSH).unflatten(-1, (-1, block.attention_head_size))
            for linear in (block.query, block.key, block.value)
        )
        scores_BNSS = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / block.attention_head_size**0.5 + bias_B11S
        context_BSH = (scores_BNSS.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2).flatten(2)
        x_BSH = layer.attention.output.LayerNorm(layer.attention.output.dense(context_BSH) + x_BSH)
        inner = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(x_BSH))
        x_BSH = layer.output.LayerNorm(layer.output.dense(inner) + x_BSH)
        for outputs, output in zip(found, (x_BSH, q, k, v), strict=True):
            outputs.append(output)
    return found


def stock(bert: BertModel, batch: Padded) -> Outputs:
    """Stock Hugging Face BERT on its eager path, everything asked for; queries, keys and values by hooks."""
    found, handles = Outputs([], [], [], []), []
    for layer in bert.encoder.layer:
        block = layer.attention.self
        for outputs, linear in zip(found[1:], (block.query, block.key, block.value), strict=True):

            def keep(_module: nn.Module, _inputs: object, output: Tensor, outputs: list[Tensor] = outputs) -> None:
                outputs.append(output.unflatten(-1, (bert.config.num_attention_heads, -1)))

            handles.append(linear.register_forward_hook(keep))
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
    found.hidden.extend(output.hidden_states)
    return found


def step(
    name: str,
    forward: Callable[[BertModel, Padded], Outputs],
    teacher: BertModel,
    student: BertModel,
    projection: nn.Linear,
    batch: Padded,
    *,
    teacher_graph: bool = False,
) -> Tensor:
    """Loss of objective `name` (last_layer or minilm) by the literal definitions, and its gradients."""
    s = forward(student, batch)
    with nullcontext() if teacher_graph else torch.no_grad():
        t = forward(teacher, batch)
    t = Outputs(*([x.detach() for x in kind] for kind in t))
    mask_BS = batch.mask_BS.to(s.hidden[0].dtype)
    if name == "last_layer":
        # the published step projects every hidden state; only the last is compared here
        projected = [projection(h) for h in s.hidden] if teacher_graph else [projection(s.hidden[-1])]
        loss = definition.score_mse(s.query[-1], s.key[-1], t.query[-1], t.key[-1], mask_BS)
        loss = loss + definition.hidden_mse(projected[-1], t.hidden[-1], mask_BS)
    else:
        loss = definition.relation_kl(s.query[-1], s.key[-1], t.query[-1], t.key[-1], mask_BS)
        loss = loss + definition.relation_kl(s.value[-1], s.value[-1], t.value[-1], t.value[-1], mask_BS)
    loss.backward()
    return loss.detach()
