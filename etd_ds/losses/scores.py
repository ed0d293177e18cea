"""Squared difference of attention scores in linear time and memory, on packed tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from etd_ds.losses.packing import Segments, accumulator

# Below this many keys the n × n difference costs less than the d × d Gram matrices.
GRAM_FROM = 128
# Elements of one block (a tile of the n × n difference, or all heads' [q_s, q_t]): bounds memory, whatever the batch.
BLOCK = 1 << 21


def score_mse_sum(q_s_TND: Tensor, k_s_TND: Tensor, q_t_TNE: Tensor, k_t_TNE: Tensor, segments: Segments) -> Tensor:
    """Σ over segments, heads, queries and keys of (q_s·k_s/√D − q_t·k_t/√E)² [`definition.score_mse`], a scalar.

    With a_q = [q_s/√D, q_t/√E] and a_k = [k_s, −k_t] the difference is a_q a_kᵀ, so the sum is
    ⟨a_qᵀa_q, a_kᵀa_k⟩: matrices of size (D+E)², never n × n. The gradient is formed in the forward pass.
    """
    total: Tensor = _ScoreMSE.apply(q_s_TND, k_s_TND, q_t_TNE, k_t_TNE, segments)  # type: ignore[no-untyped-call]
    return total


class _ScoreMSE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, segments: Segments) -> Tensor:
        dtype = accumulator(q_s)
        # kept in fp32 under fp16 and bf16: the loss scale arrives only in the backward pass
        dq, dk = torch.empty_like(q_s, dtype=dtype), torch.zeros_like(k_s, dtype=dtype)
        total = torch.zeros((), dtype=torch.float64, device=q_s.device)
        # autocast would turn these products into bf16, which leaves nothing of a small difference
        with torch.autocast(q_s.device.type, enabled=False):
            for run in segments.runs():
                q_blocks = [run.heads(x) for x in (q_s, q_t, dq)]
                k_blocks = [run.heads(x)[:, :, : run.keys] for x in (k_s, k_t, dk)]
                form = _gram if run.keys >= GRAM_FROM else _tile
                step = max(1, BLOCK // (q_s.shape[1] * run.queries * GRAM_FROM))
                for i in range(0, run.count, step):
                    part = slice(i, i + step)
                    total += form(*(x[part] for x in q_blocks), *(x[part] for x in k_blocks))
        ctx.save_for_backward(dq, dk)
        ctx.dtypes = q_s.dtype, k_s.dtype
        return total.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dq, dk = ctx.saved_tensors
        return (grads[0] * dq).to(ctx.dtypes[0]), (grads[0] * dk).to(ctx.dtypes[1]), None, None, None


def _gram(q_s: Tensor, q_t: Tensor, dq: Tensor, k_s: Tensor, k_t: Tensor, dk: Tensor) -> Tensor:
    """Blocks (B, N, S, D). In fp64: the two Gram matrices cancel, and they are small beside the encoder."""
    D, E = q_s.shape[-1], q_t.shape[-1]
    a_q = torch.cat([q_s.double() * D**-0.5, q_t.double() * E**-0.5], -1)
    a_k = torch.cat([k_s.double(), -k_t.double()], -1)
    gram_q, gram_k = a_q.mT @ a_q, a_k.mT @ a_k
    dq.copy_((a_q @ gram_k[..., :D]).mul_(2 * D**-0.5))
    dk.copy_((a_k @ gram_q[..., :D]).mul_(2))
    total: Tensor = (gram_q * gram_k).sum()
    return total


def _tile(q_s: Tensor, q_t: Tensor, dq: Tensor, k_s: Tensor, k_t: Tensor, dk: Tensor) -> Tensor:
    """The same by the difference itself, for short segments."""
    D, E, dtype = q_s.shape[-1], q_t.shape[-1], dq.dtype
    q_s, k_s = q_s.to(dtype) * D**-0.5, k_s.to(dtype)
    difference_BNSS = q_s @ k_s.mT - (q_t.to(dtype) * E**-0.5) @ k_t.to(dtype).mT
    dq.copy_((difference_BNSS @ k_s).mul_(2 * D**-0.5))
    dk.copy_((difference_BNSS.mT @ q_s).mul_(2))
    total: Tensor = difference_BNSS.square().sum(-1).double().sum()
    return total
