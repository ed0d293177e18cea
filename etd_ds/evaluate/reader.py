"""An encoder with the head that its task needs, as BERT is fine-tuned [Devlin et al. §4]."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertModel

from etd_ds.bert import checkpoint
from etd_ds.evaluate.encoding import Inputs
from etd_ds.evaluate.tasks import Kind, Task


class Reader(nn.Module):
    """Encoder and head: (B, outputs) from [CLS] through the pooler, or for spans (B, S, 2) from every token."""

    def __init__(self, bert: BertModel, pooler: nn.Linear | None, head: nn.Linear, dropout: float) -> None:
        super().__init__()
        self.bert, self.pooler, self.head, self.dropout = bert, pooler, head, dropout

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits in fp32, padding of spans at minus infinity."""
        hidden_BSH = self.bert(
            input_ids=inputs.ids_BS, attention_mask=inputs.mask_BS, token_type_ids=inputs.types_BS
        ).last_hidden_state
        if self.pooler is None:
            logits_BS2: Tensor = self.head(hidden_BSH).float()
            return logits_BS2.masked_fill(inputs.mask_BS[..., None] == 0, float("-inf"))
        pooled_BH = torch.tanh(self.pooler(hidden_BSH[:, 0]))
        logits_BO: Tensor = self.head(F.dropout(pooled_BH, self.dropout, self.training)).float()
        return logits_BO


def build(folder: Path, task: Task, generator: torch.Generator) -> Reader:
    """A checkpoint with a new head; the pooler is the checkpoint's where it has one, else new too."""
    weights = checkpoint.read_weights(folder)
    config = checkpoint.read_config(folder)
    bert = checkpoint.build_encoder(config, weights.state, dtype=torch.float32)
    std: float = bert.config.initializer_range

    def new(outputs: int) -> nn.Linear:
        linear = nn.Linear(bert.config.hidden_size, outputs)
        nn.init.normal_(linear.weight, std=std, generator=generator)
        nn.init.zeros_(linear.bias)
        return linear

    pooler = None
    if task.kind != "span":
        pooler = new(bert.config.hidden_size)
        if "pooler.dense.weight" in weights.state:
            pooler.load_state_dict({key: weights.state[f"pooler.dense.{key}"].float() for key in ("weight", "bias")})
    return Reader(bert, pooler, new(task.outputs), bert.config.hidden_dropout_prob)


def loss(kind: Kind, logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the batch: cross-entropy, squared error, or the mean of the start's and the end's cross-entropy."""
    if kind == "classification":
        return F.cross_entropy(logits, targets.long())
    if kind == "regression":
        return F.mse_loss(logits[:, 0], targets.float())
    starts, ends = logits.unbind(-1)
    return (F.cross_entropy(starts, targets[:, 0]) + F.cross_entropy(ends, targets[:, 1])) / 2
