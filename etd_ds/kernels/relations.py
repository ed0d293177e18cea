"""MiniLM's KL on CUDA in Triton: over segments of any lengths, without padding, n × n matrices or atomics.

`losses.relations` is its definition. Legend: T packed tokens, N heads, D and E head sizes of student and teacher,
R rows (tokens of one block), C columns (tokens that it is compared with).
"""

# Triton's functions have no types that mypy knows.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import itertools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Tokens and warps of one block: in half precision, with heads of 64 at most, registers hardly spill on any GPU.
BLOCK = 64
WARPS = 8
# p_s − p_t is formed in fp32 and multiplied by this before it is rounded to fp16, whose smallest number is 6e-8.
SCALE = tl.constexpr(1024.0)


def relation_kl(
    q_s_TND: Tensor, k_s_TND: Tensor, q_t_TNE: Tensor, k_t_TNE: Tensor, lengths: tuple[int, ...], *, block: int = BLOCK
) -> tuple[Tensor, Tensor, Tensor]:
    """(Σ of the KL in fp64, its gradients by q_s and by k_s in fp32). Made for bf16 and fp16; right in fp32 too."""
    q_s, k_s, q_t, k_t = (x.contiguous() for x in (q_s_TND, k_s_TND, q_t_TNE, k_t_TNE))
    (T, N, D), E = q_s.shape, q_t.shape[-1]
    edges = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32).to(q_s.device, non_blocking=True)
    kl_NT, lse_s_NT, lse_t_NT = torch.empty(3, N, T, device=q_s.device)
    dq, dk = (torch.empty_like(x, dtype=torch.float32) for x in (q_s, k_s))
    blocks = triton.cdiv(max(lengths), block)
    grid = (blocks * len(lengths) * N,)  # CUDA takes 65,535 along a second axis, and short segments are more
    sizes: dict[str, Any] = {"N": N, "D": D, "E": E, "D2": _power(D), "E2": _power(E), "BLOCK": block}
    inputs = q_s, k_s, q_t, k_t, edges, lse_s_NT, lse_t_NT
    _forward[grid](*inputs, kl_NT, T, blocks, D**-0.5, E**-0.5, **sizes, num_warps=WARPS)
    _gradient[grid](*inputs, dq, T, blocks, D**-0.5, E**-0.5, **sizes, OF_KEYS=False, num_warps=WARPS)
    _gradient[grid](*inputs, dk, T, blocks, D**-0.5, E**-0.5, **sizes, OF_KEYS=True, num_warps=WARPS)
    return kl_NT.double().sum(), dq, dk


def _power(size: int) -> int:
    """What a tile of that many columns is padded to; products take 16 at least."""
    return max(16, 1 << (size - 1).bit_length())


@triton.jit
def _rows(pointer, start, rows, length, head, N: tl.constexpr, D: tl.constexpr, D2: tl.constexpr):
    """Tokens `rows` of the segment that begins at `start`, of one head, as a tile (R, D2); zero outside of it."""
    columns = tl.arange(0, D2)
    places = ((start + rows) * N + head)[:, None] * D + columns[None, :]
    return tl.load(pointer + places, mask=(rows < length)[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def _scores(q_RD, k_CD, scale):
    return tl.dot(q_RD, tl.trans(k_CD), input_precision="ieee") * scale


@triton.jit(do_not_specialize=["T", "blocks"])
def _forward(
    q_s, k_s, q_t, k_t, edges, lse_s, lse_t, kl, T, blocks, scale_s, scale_t,
    N: tl.constexpr, D: tl.constexpr, E: tl.constexpr, D2: tl.constexpr, E2: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of one block of queries and one head: both log-sum-exps, and the KL, in one pass over the keys."""
    block, pair = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    segment, head = pair // N, pair % N
    start = tl.load(edges + segment).to(tl.int64)
    length = (tl.load(edges + segment + 1) - start).to(tl.int32)
    if block * BLOCK >= length:
        return
    rows = block * BLOCK + tl.arange(0, BLOCK)
    q_s_RD = _rows(q_s, start, rows, length, head, N, D, D2)
    q_t_RE = _rows(q_t, start, rows, length, head, N, E, E2)
    # of student and teacher the highest score so far, and sums relative to it
    high_s_R = tl.full([BLOCK], -1e30, tl.float32)
    high_t_R = tl.full([BLOCK], -1e30, tl.float32)
    sum_s_R = tl.zeros([BLOCK], tl.float32)
    sum_t_R = tl.zeros([BLOCK], tl.float32)
    difference_R = tl.zeros([BLOCK], tl.float32)
    for first in range(0, length, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside_1C = (columns < length)[None, :]
        s_RC = _scores(q_s_RD, _rows(k_s, start, columns, length, head, N, D, D2), scale_s)
        t_RC = _scores(q_t_RE, _rows(k_t, start, columns, length, head, N, E, E2), scale_t)
        s_RC = tl.where(inside_1C, s_RC, -1e30)
        t_RC = tl.where(inside_1C, t_RC, -1e30)
        new_s_R = tl.maximum(high_s_R, tl.max(s_RC, 1))
        new_t_R = tl.maximum(high_t_R, tl.max(t_RC, 1))
        p_t_RC = tl.exp(t_RC - new_t_R[:, None])
        shrink_t_R = tl.exp(high_t_R - new_t_R)
        sum_s_R = sum_s_R * tl.exp(high_s_R - new_s_R) + tl.sum(tl.exp(s_RC - new_s_R[:, None]), 1)
        sum_t_R = sum_t_R * shrink_t_R + tl.sum(p_t_RC, 1)
        difference_R = difference_R * shrink_t_R + tl.sum(p_t_RC * (t_RC - s_RC), 1)
        high_s_R, high_t_R = new_s_R, new_t_R
    lse_s_R = high_s_R + tl.log(sum_s_R)
    lse_t_R = high_t_R + tl.log(sum_t_R)
    places = head.to(tl.int64) * T + start + rows
    tl.store(lse_s + places, lse_s_R, mask=rows < length)
    tl.store(lse_t + places, lse_t_R, mask=rows < length)
    tl.store(kl + places, difference_R / sum_t_R - lse_t_R + lse_s_R, mask=rows < length)


@triton.jit(do_not_specialize=["T", "blocks"])
def _gradient(
    q_s, k_s, q_t, k_t, edges, lse_s, lse_t, gradient, T, blocks, scale_s, scale_t,
    N: tl.constexpr, D: tl.constexpr, E: tl.constexpr, D2: tl.constexpr, E2: tl.constexpr, BLOCK: tl.constexpr,
    OF_KEYS: tl.constexpr,
):  # fmt: skip
    """Of one block and one head: Σ over keys of (p_s − p_t) k_s, or with `OF_KEYS` over queries of (p_s − p_t) q_s."""
    block, pair = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    segment, head = pair // N, pair % N
    start = tl.load(edges + segment).to(tl.int64)
    length = (tl.load(edges + segment + 1) - start).to(tl.int32)
    if block * BLOCK >= length:
        return
    rows = block * BLOCK + tl.arange(0, BLOCK)
    lses = head.to(tl.int64) * T + start
    if OF_KEYS:
        own_s, own_t, other_s, other_t = k_s, k_t, q_s, q_t
    else:
        own_s, own_t, other_s, other_t = q_s, q_t, k_s, k_t
        lse_s_R1 = tl.load(lse_s + lses + rows, mask=rows < length, other=0.0)[:, None]
        lse_t_R1 = tl.load(lse_t + lses + rows, mask=rows < length, other=0.0)[:, None]
    own_s_RD = _rows(own_s, start, rows, length, head, N, D, D2)
    own_t_RE = _rows(own_t, start, rows, length, head, N, E, E2)
    sum_RD = tl.zeros([BLOCK, D2], tl.float32)
    for first in range(0, length, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        other_s_CD = _rows(other_s, start, columns, length, head, N, D, D2)
        s_RC = _scores(own_s_RD, other_s_CD, scale_s)
        t_RC = _scores(own_t_RE, _rows(other_t, start, columns, length, head, N, E, E2), scale_t)
        if OF_KEYS:
            lse_s_1C = tl.load(lse_s + lses + columns, mask=columns < length, other=0.0)[None, :]
            lse_t_1C = tl.load(lse_t + lses + columns, mask=columns < length, other=0.0)[None, :]
            g_RC = tl.exp(s_RC - lse_s_1C) - tl.exp(t_RC - lse_t_1C)
        else:
            g_RC = tl.exp(s_RC - lse_s_R1) - tl.exp(t_RC - lse_t_R1)
        g_RC = tl.where((columns < length)[None, :], g_RC * SCALE, 0.0)
        sum_RD += tl.dot(g_RC.to(other_s_CD.dtype), other_s_CD, input_precision="ieee")
    d = tl.arange(0, D2)
    places = ((start + rows) * N + head)[:, None] * D + d[None, :]
    inside = (rows < length)[:, None] & (d < D)[None, :]
    tl.store(gradient + places, sum_RD * (scale_s / SCALE), mask=inside)
