"""Losses whose gradient is formed along with them, block by block, so that nothing of size n × n is ever kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from etd_ds.losses.packing import Run, Segments, accumulator

# Elements of one block: bounds memory, whatever the batch. On a CPU it stays in the cache; on a GPU it is larger, since
# each block is a few launches.
BLOCK = {"cpu": 1 << 18, "cuda": 1 << 26}
# From so many runs of unequal segments on, those of like lengths are padded into one: on a GPU launches cost more than
# the padding, which at most doubles what is longer than 16 tokens.
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
        # one row more than there are tokens: what padding is read from and written to
        dq, dk = (x.new_zeros(len(x) + 1, *x.shape[1:], dtype=dtype) for x in (q_s, k_s))
        total = torch.zeros((), dtype=torch.float64, device=q_s.device)
        if len(runs) < RUNS_TO_PAD[device]:
            for run in runs:
                total += form(_heads(run, (q_s, k_s, q_t, k_t, dq, dk), None))
        else:
            inputs = [torch.cat([x, x.new_zeros(1, *x.shape[1:])]) for x in (q_s, k_s, q_t, k_t)]
            for padded in _padded(segments, q_s.device):
                places = padded.queries_X, padded.keys_X
                parts = [x[index_X] for x, index_X in zip(inputs, places * 2, strict=True)]
                grads = [torch.empty_like(x, dtype=dtype) for x in parts[:2]]
                total += form(_heads(padded.run, (*parts, *grads), padded.closed_BS))
                for whole, index_X, part in zip((dq, dk), places, grads, strict=True):
                    whole.index_copy_(0, index_X, part)
    return with_gradients(q_s, k_s, total, dq[:-1], dk[:-1])


def with_gradients(q_s: Tensor, k_s: Tensor, total: Tensor, dq: Tensor, dk: Tensor) -> Tensor:
    """`total` as a function of q_s and k_s whose gradients are known already."""
    result: Tensor = _Formed.apply(q_s, k_s, total.to(dq.dtype), dq, dk)  # type: ignore[no-untyped-call]
    return result


class _Padded(NamedTuple):
    """Segments of like lengths as one run of B·S places: the token that each is read from, T for padding."""

    run: Run
    queries_X: Tensor
    keys_X: Tensor
    closed_BS: Tensor


def _padded(segments: Segments, device: torch.device) -> Iterator[_Padded]:
    """The segments, grouped by the power of two that their lengths fit into."""
    groups: dict[int, list[tuple[int, int, int]]] = {}
    starts = itertools.accumulate(segments.lengths, initial=0)
    for start, length, keys in zip(starts, segments.lengths, segments.keys, strict=False):
        groups.setdefault(max(4, (length - 1).bit_length()), []).append((start, length, keys))
    T = sum(segments.lengths)
    for group in groups.values():
        B, S = len(group), max(length for _, length, _ in group)
        # not waited for: a GPU has other work in the meantime
        start_B1, length_B1, keys_B1 = torch.tensor(group).to(device, non_blocking=True).T[..., None]
        places_S = torch.arange(S, device=device)
        places_BS = start_B1 + places_S
        closed_BS = places_S >= keys_B1
        queries_X = places_BS.masked_fill(places_S >= length_B1, T).flatten()
        yield _Padded(Run(0, B, S, S), queries_X, places_BS.masked_fill(closed_BS, T).flatten(), closed_BS)


def _heads(run: Run, tensors: tuple[Tensor, ...], closed_BS: Tensor | None) -> Heads:
    """A run's part of (q_s, k_s, q_t, k_t, dq, dk)."""
    q_s, k_s, q_t, k_t, dq, dk = (run.heads(x) for x in tensors)
    return Heads(q_s, k_s[:, :, : run.keys], q_t, k_t[:, :, : run.keys], dq, dk[:, :, : run.keys], closed_BS)


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
