"""Linear layers in fp32 on a CPU by oneDNN, on AMD's AVX-512 cores more than twice as fast as torch's own way.

Both round to fp32 and nothing less. Everything else (other precisions, GPUs, parameters that ZeRO-3 has partitioned)
goes the stock way.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# torch reaches oneDNN in fp32 through this operator alone, where it has it; the version of torch is pinned.
_ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
# oneDNN keeps half a megabyte of code for each number of rows that it has met: they are rounded to so many sizes
# between two powers of two.
SIZES = 16


def rows(T: int) -> int:
    """The number of rows, at least T, that packed tokens should be padded to for `linear`."""
    step = max(1, (1 << max(T - 1, 1).bit_length()) // (2 * SIZES))
    return T + -T % step


def serves(module: nn.Linear, x: Tensor) -> bool:
    """Whether oneDNN computes `module(x)`."""
    if torch.compiler.is_compiling():
        return False
    whole = not hasattr(module.weight, "ds_id")  # ZeRO-3 gathers a parameter only around its module's own call
    fp32 = x.dtype == module.weight.dtype == torch.float32
    return _ONEDNN is not None and x.device.type == "cpu" and fp32 and whole


def linear(module: nn.Linear, x_TI: Tensor) -> Tensor:
    """`module(x)`, (T, in) → (T, out)."""
    if not serves(module, x_TI):
        y_TO: Tensor = module(x_TI)
        return y_TO
    result: Tensor = _Linear.apply(x_TI, module.weight, module.bias)  # type: ignore[no-untyped-call]
    return result


def feed_forward(inner: nn.Linear, outer: nn.Linear, x_TI: Tensor) -> Tensor:
    """`outer(gelu(inner(x)))`. The gradient keeps nothing of the size of the inner layer, and computes it anew."""
    if not (serves(inner, x_TI) and serves(outer, x_TI)):
        return linear(outer, F.gelu(linear(inner, x_TI)))
    weights = inner.weight, inner.bias, outer.weight, outer.bias
    result: Tensor = _FeedForward.apply(x_TI, *weights)  # type: ignore[no-untyped-call]
    return result


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, w1_FI: Tensor, b1_F: Tensor, w2_OF: Tensor, b2_O: Tensor) -> Tensor:
        ctx.save_for_backward(x_TI, w1_FI, b1_F, w2_OF)
        return _product(_product(x_TI, w1_FI, b1_F, "gelu"), w2_OF, b2_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, w1_FI, b1_F, w2_OF = ctx.saved_tensors
        grad_TO, u_TF = grads[0].contiguous(), _product(x_TI, w1_FI, b1_F)
        grad_w2_OF = _product(grad_TO.t(), F.gelu(u_TF).t())
        grad_TF = torch.ops.aten.gelu_backward(_product(grad_TO, w2_OF.t()), u_TF)
        return (
            _product(grad_TF, w1_FI.t()),
            _product(grad_TF.t(), x_TI.t()),
            grad_TF.sum(0),
            grad_w2_OF,
            grad_TO.sum(0),
        )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
        ctx.save_for_backward(x_TI, weight_OI)
        return _product(x_TI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight_OI = ctx.saved_tensors
        grad_TO = grads[0].contiguous()
        needs = ctx.needs_input_grad
        return (
            _product(grad_TO, weight_OI.t()) if needs[0] else None,
            _product(grad_TO.t(), x_TI.t()) if needs[1] else None,
            grad_TO.sum(0) if needs[2] else None,
        )


def _product(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None, then: str = "none") -> Tensor:
    y_TO: Tensor = _ONEDNN(x_TI, weight_OI, bias_O, then, [], "none")
    return y_TO
