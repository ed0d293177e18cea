"""KL divergence of attention distributions, formed head by head and never kept, on packed tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from etd_ds.kernels import half
from etd_ds.losses import forming
from etd_ds.losses.forming import Heads
from etd_ds.losses.packing import Segments

# Added to scores of padding. Finite and the same for both sides: their difference there is 0, and not NaN.
CLOSED = -1e30
# Of a head, for the Triton kernel: with 128 it takes more shared memory than many a GPU has (99 KiB).
LARGEST = 64


def relation_kl_sum(q_s_TND: Tensor, k_s_TND: Tensor, q_t_TNE: Tensor, k_t_TNE: Tensor, segments: Segments) -> Tensor:
    """Σ over segments, heads and queries of KL(softmax q_t k_tᵀ/√E ‖ softmax q_s k_sᵀ/√D) [`definition.relation_kl`].

    The gradient p_s − p_t is formed in fp32, before anything is rounded to a lower precision.
    """
    size = max(q_s_TND.shape[-1], q_t_TNE.shape[-1])
    # in fp32 the kernel would not fit into registers
    if half.serves(q_s_TND) and half.triton() and size <= LARGEST and segments.keys == segments.lengths:
        from etd_ds.kernels.relations import relation_kl

        with torch.no_grad():
            found = relation_kl(q_s_TND, k_s_TND, q_t_TNE, k_t_TNE, segments.lengths)
        return forming.with_gradients(q_s_TND, k_s_TND, *found)
    return forming.formed(_relation_kl, q_s_TND, k_s_TND, q_t_TNE, k_t_TNE, segments)


def _relation_kl(heads: Heads) -> Tensor:
    # segments and heads under one index X: (X, S, D)
    N, S = heads.q_s.shape[1:3]
    q_s, k_s, q_t, k_t = (x.flatten(0, 1) for x in heads[:4])
    dq, dk = torch.empty_like(q_s, dtype=heads.dq.dtype), torch.empty_like(k_s, dtype=heads.dk.dtype)
    bias_X1S: Tensor | None = None
    if heads.closed_BS is not None:
        bias_X1S = heads.closed_BS.repeat_interleave(N, 0)[:, None].to(dq.dtype) * CLOSED
    step = max(1, forming.BLOCK[q_s.device.type] // (2 * S * k_s.shape[1]))
    total = torch.zeros((), dtype=torch.float64, device=q_s.device)
    for i in range(0, len(q_s), step):
        part = slice(i, i + step)
        bias = None if bias_X1S is None else bias_X1S[part]
        exact = [x[part].to(dq.dtype) for x in (q_s, k_s, q_t, k_t)]
        loss, dq[part], dk[part] = _block(exact[0], exact[1], exact[2], exact[3], bias)
        total += loss
    heads.dq.copy_(dq.view(heads.dq.shape))
    heads.dk.copy_(dk.view(heads.dk.shape))
    return total


def _block(
    q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, bias_X1S: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """KL of one block (X, S, D) and its gradients by q_s and k_s. Queries that are zero (padding) add nothing."""
    scale_s, scale_t = q_s.shape[-1] ** -0.5, q_t.shape[-1] ** -0.5
    q_s = q_s * scale_s
    t_XSS, s_XSS = (q_t * scale_t) @ k_t.mT, q_s @ k_s.mT
    if bias_X1S is not None:
        t_XSS, s_XSS = t_XSS.add_(bias_X1S), s_XSS.add_(bias_X1S)
    lse_t_XS1, lse_s_XS1 = t_XSS.logsumexp(-1, keepdim=True), s_XSS.logsumexp(-1, keepdim=True)
    p_t_XSS = (t_XSS - lse_t_XS1).exp_()
    rows_XS1 = t_XSS.sub_(s_XSS).mul_(p_t_XSS).sum(-1, keepdim=True) - lse_t_XS1 + lse_s_XS1
    gradient_XSS = s_XSS.sub_(lse_s_XS1).exp_().sub_(p_t_XSS)
    return rows_XS1.double().sum(), (gradient_XSS @ k_s).mul_(scale_s), gradient_XSS.mT @ q_s
