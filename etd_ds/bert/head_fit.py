"""An MLM head for a checkpoint that has none, fitted on its frozen encoder with the decoder tied to its embeddings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import BertModel

from etd_ds.bert import scoring
from etd_ds.extract import axes

PEAK_RATE = 5e-3


@dataclass(frozen=True)
class Fitted:
    """The head's parameters by their stock names, and the mean masked loss of each step."""

    state: dict[str, Tensor]
    losses: tuple[float, ...]
    features: str
    """In which precision the encoder's features were computed."""


def fit(
    bert: BertModel,
    batches: Iterator[scoring.Batch],
    *,
    steps: int,
    frequency_V: Tensor,
    generator: torch.Generator,
    report: Callable[[int], None] = lambda done: None,
) -> Fitted:
    """Fit transform and bias by `steps` steps of Adam; nothing of the encoder changes, nor has it a gradient.

    The decoder's bias starts at the log frequency of each token, which is the best guess before any step.
    """
    state = _start(bert, frequency_V, generator)
    for parameter in state.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(state.values(), lr=PEAK_RATE, betas=(0.9, 0.98))
    decoder_VH = bert.embeddings.word_embeddings.weight
    encoder = _frozen(bert)
    losses = []
    for step in range(steps):
        batch = next(batches)
        with torch.no_grad():
            last_BMH, rows_BM = scoring.forward(encoder, batch)
        labels_BM = batch.labels_BS.gather(1, rows_BM)
        seen_BM = labels_BM != scoring.IGNORED
        count = max(1, int(seen_BM.sum()))
        z_nH = scoring.transform(state, last_BMH[seen_BM].float(), bert)
        loss, dz_nH, dbias_V = scoring.decode(z_nH, decoder_VH, state[scoring.DECODER_BIAS], labels_BM[seen_BM])
        optimizer.zero_grad()
        torch.autograd.backward(z_nH, dz_nH / count)
        state[scoring.DECODER_BIAS].grad = dbias_V / count
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * _schedule(step, steps)
        optimizer.step()
        losses.append(loss / count)
        report(step + 1)
    features = str(encoder.dtype).removeprefix("torch.")
    return Fitted({name: parameter.detach() for name, parameter in state.items()}, tuple(losses), features)


def _frozen(bert: BertModel) -> BertModel:
    """The encoder whose features the head is fitted on: in bf16 where the processor multiplies that faster."""
    fast = bert.device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.nn.Module.to(copy.deepcopy(bert), torch.bfloat16) if fast else bert


def _start(bert: BertModel, frequency_V: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """BERT's own start for the transform, and the log frequency of each token for the decoder's bias."""
    H, device = bert.config.hidden_size, bert.embeddings.word_embeddings.weight.device
    smoothed_V = frequency_V.double() + 1.0
    start = {name: torch.zeros(H) for name in axes.HEADS["mlm"]}
    start[scoring.TRANSFORM + "dense.weight"] = torch.empty(H, H).normal_(0.0, 0.02, generator=generator)
    start[scoring.TRANSFORM + "LayerNorm.weight"] = torch.ones(H)
    start[scoring.DECODER_BIAS] = (smoothed_V / smoothed_V.sum()).log().float()
    return {name: value.to(device) for name, value in start.items()}


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over the first tenth, then linear decay to zero."""
    warm = max(1, steps // 10)
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm))
