"""KL divergence of attention distributions, formed head by head and never kept, on packed tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from etd_ds.losses.packing import Run, Segments, accumulator

# Elements of one n × n block of scores.
BLOCK = 1 << 20


def relation_kl_sum(q_s_TND: Tensor, k_s_TND: Tensor, q_t_TNE: Tensor, k_t_TNE: Tensor, segments: Segments) -> Tensor:
    """Σ over segments, heads and queries of KL(softmax q_t k_tᵀ/√E ‖ softmax q_s k_sᵀ/√D) [`definition.relation_kl`].

    The gradient p_s − p_t is formed in fp32 in the forward pass, before anything is rounded to a lower precision.
    """
    total: Tensor = _RelationKL.apply(q_s_TND, k_s_TND, q_t_TNE, k_t_TNE, segments)  # type: ignore[no-untyped-call]
    return total


class _RelationKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, segments: Segments) -> Tensor:
        dtype = accumulator(q_s)
        dq, dk = torch.empty_like(q_s, dtype=dtype), torch.zeros_like(k_s, dtype=dtype)
        total = torch.zeros((), dtype=torch.float64, device=q_s.device)
        with torch.autocast(q_s.device.type, enabled=False):
            for run in segments.runs():
                total += _run(run, q_s, k_s, q_t, k_t, dq, dk)
        ctx.save_for_backward(dq, dk)
        ctx.dtypes = q_s.dtype, k_s.dtype
        return total.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dq, dk = ctx.saved_tensors
        return (grads[0] * dq).to(ctx.dtypes[0]), (grads[0] * dk).to(ctx.dtypes[1]), None, None, None


def _run(run: Run, q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, dq: Tensor, dk: Tensor) -> Tensor:
    # segments and heads under one index X: (X, S, D)
    q_s, q_t = (run.heads(x).flatten(0, 1) for x in (q_s, q_t))
    k_s, k_t = (run.heads(x)[:, :, : run.keys].flatten(0, 1) for x in (k_s, k_t))
    dq_XSD, dk_XSD = torch.empty_like(q_s, dtype=dq.dtype), torch.empty_like(k_s, dtype=dk.dtype)
    total = torch.zeros((), dtype=torch.float64, device=dq.device)
    step = max(1, BLOCK // (run.queries * run.keys))
    for i in range(0, len(q_s), step):
        part = slice(i, i + step)
        loss, dq_XSD[part], dk_XSD[part] = _block(*(x[part].to(dq.dtype) for x in (q_s, k_s, q_t, k_t)))
        total += loss
    run.heads(dq).copy_(dq_XSD.view(run.count, -1, *dq_XSD.shape[1:]))
    run.heads(dk)[:, :, : run.keys].copy_(dk_XSD.view(run.count, -1, *dk_XSD.shape[1:]))
    return total


def _block(q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """KL of one block (X, S, D) and its gradients by q_s and k_s."""
    scale_s, scale_t = q_s.shape[-1] ** -0.5, q_t.shape[-1] ** -0.5
    q_s = q_s * scale_s
    t_XSS, s_XSS = (q_t * scale_t) @ k_t.mT, q_s @ k_s.mT
    lse_t_XS1, lse_s_XS1 = t_XSS.logsumexp(-1, keepdim=True), s_XSS.logsumexp(-1, keepdim=True)
    p_t_XSS = (t_XSS - lse_t_XS1).exp_()
    rows_XS1 = t_XSS.sub_(s_XSS).mul_(p_t_XSS).sum(-1, keepdim=True) - lse_t_XS1 + lse_s_XS1
    gradient_XSS = s_XSS.sub_(lse_s_XS1).exp_().sub_(p_t_XSS)
    return rows_XS1.double().sum(), (gradient_XSS @ k_s).mul_(scale_s), gradient_XSS.mT @ q_s
