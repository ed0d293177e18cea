"""Linear layers by oneDNN give what the stock modules give in fp64, in value and gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from etd_ds.kernels import linear

T, IN, MID = 37, 24, 40


def _modules():
    torch.manual_seed(0)
    return nn.Linear(IN, MID), nn.Linear(MID, IN)


def _exact(function, x, modules):
    doubles = [nn.Linear(m.in_features, m.out_features).double() for m in modules]
    for double, module in zip(doubles, modules, strict=True):
        double.load_state_dict(module.state_dict())
    return _value_and_gradients(function, x.detach().double().requires_grad_(), doubles)


def _value_and_gradients(function, x, modules):
    y = function(x, *modules)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return y, torch.autograd.grad((y * weight).sum(), [x, *(p for m in modules for p in m.parameters())])


@pytest.mark.parametrize(
    ("fast", "plain", "count"),
    [
        (lambda x, a: linear.linear(a, x), lambda x, a: a(x), 1),
        (lambda x, a, b: linear.feed_forward(a, b, x), lambda x, a, b: b(F.gelu(a(x))), 2),
    ],
    ids=["linear", "feed_forward"],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_values_and_gradients_are_the_stock_ones(fast, plain, count, transposed):
    x = torch.randn(IN, T).t() if transposed else torch.randn(T, IN)
    x.requires_grad_()
    modules = _modules()[:count]
    assert linear.serves(modules[0], x)
    got, grads = _value_and_gradients(fast, x, modules)
    wanted, wanted_grads = _exact(plain, x, modules)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
    for mine, exact in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-4, atol=1e-5)


def test_a_gradient_that_is_one_repeated_number_is_taken():
    module, x = _modules()[0], torch.randn(T, IN, requires_grad=True)
    (grad,) = torch.autograd.grad(linear.linear(module, x).sum(), x)
    torch.testing.assert_close(grad, module.weight.sum(0).expand_as(x))


def test_frozen_parameters_get_no_gradient():
    module, x = _modules()[0].requires_grad_(False), torch.randn(T, IN, requires_grad=True)
    linear.linear(module, x).sum().backward()
    assert x.grad is not None
    assert module.weight.grad is None


def test_other_precisions_and_partitioned_parameters_go_the_stock_way():
    module = _modules()[0]
    assert not linear.serves(module.double(), torch.randn(T, IN).double())
    assert not linear.serves(module.bfloat16(), torch.randn(T, IN).bfloat16())
    module = _modules()[0]
    module.weight.ds_id = 0
    assert not linear.serves(module, torch.randn(T, IN))
    assert torch.equal(linear.linear(module, x := torch.randn(T, IN)), module(x))


@given(st.integers(1, 1 << 20))
def test_rows_take_few_sizes_and_waste_little(T):
    assert T <= linear.rows(T) <= T + T // linear.SIZES + 1
    octave = {linear.rows(x) for x in (1025, 1100, 1500, 2000, 2048)} | {linear.rows(1025 + T % 1024)}
    assert all(size % 64 == 0 for size in octave)
