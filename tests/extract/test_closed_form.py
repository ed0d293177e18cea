"""The closed forms against what they promise: exactness where an exact answer exists, and no better one elsewhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from etd_ds.extract import closed_form

EPS = 1e-12


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 99))
def test_an_affine_map_is_found_again(inputs: int, outputs: int, seed: int) -> None:
    x, weight, bias = (
        drawn(200, inputs, seed=seed),
        drawn(outputs, inputs, seed=seed + 1),
        drawn(outputs, seed=seed + 2),
    )
    found = closed_form.affine(x, F.linear(x, weight, bias), ridge=0.0)
    torch.testing.assert_close(found.weight_GF, weight)
    torch.testing.assert_close(found.bias_G, bias)


def test_no_step_from_the_ridge_answer_lowers_what_it_minimises() -> None:
    x, y = drawn(50, 6, seed=0) * 3 + 1, drawn(50, 4, seed=1)
    fitted = closed_form.affine(x, y)
    weight, bias = (tensor.clone().requires_grad_() for tensor in fitted)
    penalty = closed_form.RIDGE * x.sub(x.mean(0)).square().sum(0).mean()
    (F.linear(x, weight, bias).sub(y).square().sum() + penalty * weight.square().sum()).backward()
    for parameter in (weight, bias):
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter), atol=1e-9, rtol=0)


def test_features_that_never_change_or_repeat_each_other_get_finite_weights() -> None:
    x = torch.cat([torch.ones(30, 1), drawn(30, 1, seed=0).expand(30, 2), torch.zeros(30, 1)], 1)
    found = closed_form.affine(x, drawn(30, 2, seed=1))
    assert all(torch.isfinite(tensor).all() for tensor in found)
    assert found.weight_GF[:, [0, 3]].abs().max() < 1e-9
    none = closed_form.affine(torch.ones(30, 2, dtype=torch.float64), drawn(30, 2, seed=1))
    assert none.weight_GF.abs().max() < 1e-9


def test_a_layer_norm_is_found_again() -> None:
    x, scale, shift = drawn(100, 8, seed=0), drawn(8, seed=1), drawn(8, seed=2)
    found = closed_form.layer_norm(x, F.layer_norm(x, (8,), scale, shift, EPS), eps=EPS)
    torch.testing.assert_close(found[0], scale)
    torch.testing.assert_close(found[1], shift)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 99))
def test_low_rank_scores_are_the_best_of_their_rank(seed: int) -> None:
    q, k = drawn(40, 6, seed=seed) @ drawn(6, 6, seed=seed + 1), drawn(40, 6, seed=seed + 2)
    whole = q @ k.T
    for rank in range(1, 7):
        a, b = closed_form.low_rank_scores(q, k, rank)
        error = ((q @ a) @ (k @ b).T - whole).norm()
        # Eckart and Young: nothing of that rank is nearer than the truncated SVD of the whole matrix
        torch.testing.assert_close(
            error, torch.linalg.svdvals(whole)[rank:].norm(), atol=1e-3 * float(whole.norm()), rtol=0
        )


def test_the_basis_of_values_tells_more_of_the_output_than_any_choice_of_components() -> None:
    v, output = drawn(300, 6, seed=0) @ drawn(6, 6, seed=1), drawn(5, 6, seed=2)
    wanted = v @ output.T

    def unexplained(features: torch.Tensor) -> float:
        return float((F.linear(features, *closed_form.affine(features, wanted, ridge=0.0)) - wanted).norm())

    ours = unexplained(v @ closed_form.low_rank_output(v, output, 3))
    choices = torch.combinations(torch.arange(6), 3)
    assert ours < min(unexplained(v[:, choice]) for choice in choices)
    assert unexplained(v @ closed_form.low_rank_output(v, output, 5)) < 1e-6 * float(wanted.norm())
