"""Losses whose gradient is formed along with them, block by block, so that nothing of size n × n is ever kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from etd_ds.losses.packing import Run, Segments, accumulator

# Elements of one block: bounds memory, whatever the batch. On a CPU it stays in the cache; on a GPU it is larger, since
# each block is a few launches.
BLOCK = {"cpu": 1 << 18, "cuda": 1 << 26}
# From so many runs of unequal segments on, all are padded into one: on a GPU launches cost more than the padding.
RUNS_TO_PAD = {"cpu": 1 << 62, "cuda": 8}


class Heads(NamedTuple):
    """One run's tensors as (B, N, S, D): student, teacher, and the gradients to fill in."""

    q_s: Tensor
    k_s: Tensor
    q_t: Tensor
    k_t: Tensor
    dq: Tensor
    dk: Tensor
    closed_BS: Tensor | None
    """True on keys that are padding; `None` where there is none."""


def formed(
    form: Callable[[Heads], Tensor], q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, segments: Segments
) -> Tensor:
    """Σ of `form` over the segments of packed (T, N, D) tensors, a scalar; `form` also fills in its gradients.

    They are kept in fp32 under fp16 and bf16, since the loss scale arrives only in the backward pass; and autocast is
    off, which would leave nothing of a small difference.
    """
    dtype, device = accumulator(q_s), q_s.device.type
    with torch.no_grad(), torch.autocast(device, enabled=False):
        runs = list(segments.runs())
        padding = _Padding(segments, q_s.device) if len(runs) >= RUNS_TO_PAD[device] else None
        q = [x if padding is None else padding.spread(x, padding.queries_X) for x in (q_s, q_t)]
        k = [x if padding is None else padding.spread(x, padding.keys_X) for x in (k_s, k_t)]
        dq, dk = torch.empty_like(q[0], dtype=dtype), torch.zeros_like(k[0], dtype=dtype)
        total = torch.zeros((), dtype=torch.float64, device=q_s.device)
        for run in runs if padding is None else [padding.run]:
            q_s_BNSD, q_t_BNSE, dq_BNSD = (run.heads(x) for x in (*q, dq))
            k_s_BNSD, k_t_BNSE, dk_BNSD = (run.heads(x)[:, :, : run.keys] for x in (*k, dk))
            closed_BS = None if padding is None else padding.closed_BS
            total += form(Heads(q_s_BNSD, k_s_BNSD, q_t_BNSE, k_t_BNSE, dq_BNSD, dk_BNSD, closed_BS))
        if padding is not None:
            dq, dk = padding.collect(dq, padding.queries_X), padding.collect(dk, padding.keys_X)
    return with_gradients(q_s, k_s, total, dq, dk)


def with_gradients(q_s: Tensor, k_s: Tensor, total: Tensor, dq: Tensor, dk: Tensor) -> Tensor:
    """`total` as a function of q_s and k_s whose gradients are known already."""
    result: Tensor = _Formed.apply(q_s, k_s, total.to(dq.dtype), dq, dk)  # type: ignore[no-untyped-call]
    return result


class _Padding:
    """All segments as one run, padded with zeros: where each of its B·S places is read from, T for padding."""

    def __init__(self, segments: Segments, device: torch.device) -> None:
        B, S = len(segments.lengths), max(segments.lengths)
        lengths_B, keys_B = torch.tensor([segments.lengths, segments.keys], device=device)
        self._tokens = sum(segments.lengths)
        places_S = torch.arange(S, device=device)
        places_BS = (lengths_B.cumsum(0) - lengths_B)[:, None] + places_S
        self.run = Run(0, B, S, S)
        self.queries_X = places_BS.masked_fill(places_S >= lengths_B[:, None], self._tokens).flatten()
        self.closed_BS = places_S >= keys_B[:, None]
        self.keys_X = places_BS.masked_fill(self.closed_BS, self._tokens).flatten()

    def spread(self, x_TND: Tensor, index_X: Tensor) -> Tensor:
        """(T, N, D) → (B·S, N, D)."""
        return torch.cat([x_TND, x_TND.new_zeros(1, *x_TND.shape[1:])])[index_X]

    def collect(self, x_XND: Tensor, index_X: Tensor) -> Tensor:
        """(B·S, N, D) → (T, N, D), zero where nothing was spread from."""
        x_TND = x_XND.new_zeros(self._tokens + 1, *x_XND.shape[1:])
        return x_TND.index_copy_(0, index_X, x_XND)[:-1]


class _Formed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_s: Tensor, k_s: Tensor, total: Tensor, dq: Tensor, dk: Tensor) -> Tensor:
        ctx.save_for_backward(dq, dk)
        ctx.dtypes = q_s.dtype, k_s.dtype
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dq, dk = ctx.saved_tensors
        return (grads[0] * dq).to(ctx.dtypes[0]), (grads[0] * dk).to(ctx.dtypes[1]), None, None, None
