"""Every packed loss equals its literal fp64 definition on padded tensors, in value and in gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etd_ds.losses import OBJECTIVES, Segments, Taps, Totals, definition, forming, relations, scores, terms

LENGTHS = st.lists(st.integers(1, 24), min_size=1, max_size=5)


def _random(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _padded_heads(lengths, width, heads, seed, size):
    return _random((len(lengths), width, heads, size), seed)


def _mask(lengths, width):
    return (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).double()


def _pack(x, lengths, compat):
    """(B, S, …) -> (T, …): real tokens, or every position when padding is carried along."""
    return x.flatten(0, 1) if compat else torch.cat([row[:length] for row, length in zip(x, lengths, strict=True)])


def _segments(lengths, width, compat):
    return Segments((width,) * len(lengths), tuple(lengths)) if compat else Segments.packed(lengths)


def _totals(lengths, width, compat):
    if compat:
        return Totals(len(lengths) * width, len(lengths) * width**2)
    return Totals(sum(lengths), sum(length**2 for length in lengths))


def _taps(lengths, width, layers, heads, size, seed, compat):
    """Random activations of all layers, padded (leaves) and as `Taps` packed from them."""
    padded, packed = {}, Taps()
    for kind in ("query", "key", "value", "hidden"):
        for layer in range(kind != "hidden", layers + 1):
            shape = (heads, size) if kind != "hidden" else (heads * size,)
            seed += 1
            x = _random((len(lengths), width, *shape), seed).requires_grad_()
            padded[kind, layer] = x
            getattr(packed, kind)[layer] = _pack(x, lengths, compat)
    return padded, packed


def _literal(name, compat, student, teacher, weight, mask, M, N):
    """The objectives once more, spelled out layer by layer from the definitions."""

    def score(m, n):
        args = (student["query", m], student["key", m], teacher["query", n], teacher["key", n], mask)
        return definition.score_mse(*args, compat=compat)

    def hidden(m, n):
        return definition.hidden_mse(student["hidden", m] @ weight, teacher["hidden", n], mask, compat=compat)

    def kl(query, key):
        return definition.relation_kl(student[query, M], student[key, M], teacher[query, N], teacher[key, N], mask)

    if name == "last_layer":
        return {"attention": score(M, N), "hidden": hidden(M, N)}
    if name == "tinybert":
        k = N // M
        return {
            "attention": sum(score(m, m * k) for m in range(1, M + 1)),
            "hidden": sum(hidden(m, m * k) for m in range(M + 1)),
        }
    return {"attention_kl": kl("query", "key"), "value_kl": kl("value", "value")}


CASES = [(name, compat) for name in OBJECTIVES for compat in (False, True) if not (compat and name == "minilm")]


@pytest.mark.parametrize(("name", "compat"), CASES)
@pytest.mark.parametrize("gram_from", [1, 1000], ids=["gram", "tiles"])
@pytest.mark.parametrize("runs_to_pad", [0, 1 << 62], ids=["padded", "by run"])
@settings(max_examples=15, deadline=None)
@given(lengths=LENGTHS, padding=st.integers(0, 3), M=st.integers(1, 2), seed=st.integers(0, 2**16))
def test_terms_and_gradients_equal_the_definition(name, compat, gram_from, runs_to_pad, lengths, padding, M, seed):
    N, heads, width = 2 * M, 3, max(lengths) + padding
    mask, totals = _mask(lengths, width), _totals(lengths, width, compat)
    student, student_taps = _taps(lengths, width, M, heads, 4, seed, compat)
    teacher, teacher_taps = _taps(lengths, width, N, heads, 6, seed + 1000, compat)
    weight = _random((heads * 4, heads * 6), seed + 2000).requires_grad_()
    leaves = [*student.values(), weight]
    wanted = _literal(name, compat, student, teacher, weight, mask, M, N)
    wanted_grads = torch.autograd.grad(sum(wanted.values()), leaves, allow_unused=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "GRAM_FROM", gram_from)
        patch.setitem(forming.RUNS_TO_PAD, "cpu", runs_to_pad)
        frozen = Taps(*({k: x.detach() for k, x in kind.items()} for kind in vars(teacher_taps).values()))
        segments = _segments(lengths, width, compat)
        got = terms(OBJECTIVES[name](M, N), student_taps, frozen, lambda x: x @ weight, segments, totals)
    got_grads = torch.autograd.grad(sum(got.values()), leaves, allow_unused=True)

    assert got.keys() == wanted.keys()
    for term in wanted:
        torch.testing.assert_close(got[term], wanted[term], rtol=1e-9, atol=1e-12)
    for mine, literal in zip(got_grads, wanted_grads, strict=True):
        assert (mine is None) == (literal is None)
        if mine is not None:
            torch.testing.assert_close(mine, literal, rtol=1e-8, atol=1e-11)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 600), min_size=1, max_size=40))
def test_padding_serves_every_token_once_and_wastes_at_most_as_much_again(lengths):
    T = sum(lengths)
    groups = list(forming._padded(Segments.packed(lengths), torch.device("cpu")))
    for places in ("queries_X", "keys_X"):
        found = torch.cat([getattr(group, places) for group in groups])
        assert found[found < T].sort().values.tolist() == list(range(T))
    assert len(found) < 2 * T + 16 * len(lengths)


@pytest.mark.parametrize("loss", [scores.score_mse_sum, relations.relation_kl_sum])
@pytest.mark.parametrize("block", [1, 50, 10**6])
def test_blocks_do_not_change_the_result(loss, block, monkeypatch):
    lengths = (5, 5, 5, 3, 8)
    args = [_random((sum(lengths), 2, 4), seed).requires_grad_(seed < 2) for seed in range(4)]
    wanted = loss(*args, Segments.packed(lengths))
    wanted_grads = torch.autograd.grad(wanted, args[:2])
    monkeypatch.setitem(forming.BLOCK, "cpu", block)
    got = loss(*args, Segments.packed(lengths))
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(torch.autograd.grad(got, args[:2]), wanted_grads)


@pytest.mark.parametrize("loss", [scores.score_mse_sum, relations.relation_kl_sum])
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(loss):
    q, k = (_random((200, 2, 8), seed).float() for seed in range(2))
    q_s, k_s = q.clone().requires_grad_(), k.clone().requires_grad_()
    value = loss(q_s, k_s, q, k, Segments.packed([160, 40]))
    assert abs(value.item()) < 1e-3 * 200  # Σ over 2 × (160² + 40²) pairs
    for grad in torch.autograd.grad(value, (q_s, k_s)):
        assert grad.abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_nearly_learned_score_keeps_its_gradient_in_low_precision(dtype):
    """Gram matrices cancel when the student is close: they must not be formed in the inputs' precision."""
    q_t, k_t = (_random((256, 2, 16), seed).to(dtype) for seed in range(2))
    q_s = (q_t + 0.02 * _random((256, 2, 16), 5).to(dtype)).requires_grad_()
    k_s = k_t.clone().requires_grad_()
    got = scores.score_mse_sum(q_s, k_s, q_t, k_t, Segments.packed([256]))
    exact = [x.detach().double().requires_grad_() for x in (q_s, k_s)]
    wanted = scores.score_mse_sum(*exact, q_t.double(), k_t.double(), Segments.packed([256]))
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=0)
    mine, literal = torch.autograd.grad(got, (q_s, k_s)), torch.autograd.grad(wanted, exact)
    for a, b in zip(mine, literal, strict=True):
        assert (a.double() - b).norm() / b.norm() < 4 * torch.finfo(dtype).eps
