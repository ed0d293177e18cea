"""Squared difference of attention scores in linear time and memory, on packed tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from etd_ds.losses import forming
from etd_ds.losses.forming import Heads
from etd_ds.losses.packing import Segments

# Below this many keys the n × n difference costs less than the d × d Gram matrices.
GRAM_FROM = 256


def score_mse_sum(q_s_TND: Tensor, k_s_TND: Tensor, q_t_TNE: Tensor, k_t_TNE: Tensor, segments: Segments) -> Tensor:
    """Σ over segments, heads, queries and keys of (q_s·k_s/√D − q_t·k_t/√E)² [`definition.score_mse`], a scalar.

    With a_q = [q_s/√D, q_t/√E] and a_k = [k_s, −k_t] the difference is a_q a_kᵀ, so the sum is
    ⟨a_qᵀa_q, a_kᵀa_k⟩: matrices of size (D+E)², never n × n.
    """
    return forming.formed(_score_mse, q_s_TND, k_s_TND, q_t_TNE, k_t_TNE, segments)


def _score_mse(heads: Heads) -> Tensor:
    # padding is zero in queries and keys alike, so it adds nothing
    count, N, S, _ = heads.q_s.shape
    keys = heads.k_s.shape[2]
    form = _gram if keys >= GRAM_FROM else _tile
    step = max(1, forming.BLOCK[heads.q_s.device.type] // (N * S * GRAM_FROM))
    total = torch.zeros((), dtype=torch.float64, device=heads.q_s.device)
    for i in range(0, count, step):
        total += form(*(x[i : i + step] for x in heads[:6]))
    return total


def _gram(q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, dq: Tensor, dk: Tensor) -> Tensor:
    """Blocks (B, N, S, D). In fp64: the two Gram matrices cancel, and they are small beside the encoder."""
    D, E = q_s.shape[-1], q_t.shape[-1]
    a_q = torch.cat([q_s.double() * D**-0.5, q_t.double() * E**-0.5], -1)
    a_k = torch.cat([k_s.double(), -k_t.double()], -1)
    gram_q, gram_k = a_q.mT @ a_q, a_k.mT @ a_k
    dq.copy_((a_q @ gram_k[..., :D]).mul_(2 * D**-0.5))
    dk.copy_((a_k @ gram_q[..., :D]).mul_(2))
    total: Tensor = (gram_q * gram_k).sum()
    return total


def _tile(q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, dq: Tensor, dk: Tensor) -> Tensor:
    """The same by the difference itself, for short segments."""
    D, E, dtype = q_s.shape[-1], q_t.shape[-1], dq.dtype
    q_s, k_s = q_s.to(dtype) * D**-0.5, k_s.to(dtype)
    difference_BNSS = q_s @ k_s.mT - (q_t.to(dtype) * E**-0.5) @ k_t.to(dtype).mT
    dq.copy_((difference_BNSS @ k_s).mul_(2 * D**-0.5))
    dk.copy_((difference_BNSS.mT @ q_s).mul_(2))
    total: Tensor = difference_BNSS.square().sum(-1).double().sum()
    return total
