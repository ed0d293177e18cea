"""The module that is trained: its loss does not depend on how a batch is split; what is trained is what is saved."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from etd_ds.data.batch import collate
from etd_ds.data.corpus import Row
from etd_ds.distill import inputs
from etd_ds.distill.module import Distiller, Guide, encoder_state
from etd_ds.engine.schedule import learning_rate
from etd_ds.losses import OBJECTIVES

SIZES = {"vocab_size": 60, "num_attention_heads": 3, "max_position_embeddings": 20, "initializer_range": 0.3}


def _bert(layers, hidden, seed):
    torch.manual_seed(seed)
    config = BertConfig(hidden_size=hidden, num_hidden_layers=layers, intermediate_size=2 * hidden, **SIZES)
    return BertModel(config, add_pooling_layer=False).double().eval()


def _distiller(name, **options):
    objective = OBJECTIVES[name](2, 4)
    settings = {"teacher_hidden": 24, "dropout": 0.0, "seed": 0, **options}
    return Distiller(_bert(2, 12, seed=1), objective, **settings).double(), Guide(_bert(4, 24, seed=2), objective)


_shared = functools.cache(_distiller)


def _rows(segments, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for lengths in segments:
        ids = torch.randint(1, 60, (sum(lengths),), generator=generator).numpy()
        rows.append(Row(ids, ids % 2, tuple(lengths)))
    return rows


ROWS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=2, max_size=5)


@pytest.mark.parametrize(("name", "pad_to"), [("last_layer", None), ("tinybert", 12), ("minilm", None)])
@settings(max_examples=10, deadline=None)
@given(segments=ROWS, cut=st.integers(1, 4), seed=st.integers(0, 999))
def test_the_parts_of_a_batch_add_up_to_the_whole(name, pad_to, segments, cut, seed):
    """So the loss and its gradient depend neither on the micro batch nor on the number of ranks."""
    distiller, guide = _shared(name)
    rows = _rows(segments, seed)
    parts = [part for part in (rows[:cut], rows[cut:]) if part]
    packed = [inputs.pack(collate(part), pad_to=pad_to) for part in parts]
    totals = inputs.totals(packed)
    learning = [parameter for parameter in distiller.parameters() if parameter.requires_grad]

    def loss_and_gradient(batches):
        loss = sum(distiller(batch, guide(batch), totals)[0] for batch in batches)
        return loss, torch.autograd.grad(loss, learning)

    whole = inputs.pack(collate(rows), pad_to=pad_to)
    torch.testing.assert_close(loss_and_gradient(packed), loss_and_gradient([whole]))


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_exactly_the_parameters_that_the_loss_reaches_learn(name):
    distiller, guide = _distiller(name)
    packed = inputs.pack(collate(_rows([[5, 4], [7]], 0)), pad_to=None)
    loss, terms = distiller(packed, guide(packed), inputs.totals([packed]))
    loss.backward()
    assert loss.item() == pytest.approx(terms.sum().item())
    assert len(terms) == len(distiller.names)
    assert all((p.grad is not None) == p.requires_grad for p in distiller.parameters())
    frozen = {n for n, p in distiller.bert.named_parameters() if not p.requires_grad}
    behind_the_values = ("encoder.layer.1.attention.output", "encoder.layer.1.intermediate", "encoder.layer.1.output")
    assert bool(frozen) == (name == "minilm")
    assert all(parameter.startswith(behind_the_values) for parameter in frozen)


def test_the_teacher_makes_no_graph_and_never_learns():
    _, guide = _distiller("tinybert")
    packed = inputs.pack(collate(_rows([[5]], 0)), pad_to=None)
    guide.train()
    taps = guide(packed)
    assert not any(x.requires_grad for kind in vars(taps).values() for x in kind.values())
    assert not any(parameter.requires_grad for parameter in guide.parameters())


def test_the_projection_is_the_seeds_and_no_part_of_the_student():
    one, _ = _distiller("last_layer", seed=3)
    same, _ = _distiller("last_layer", seed=3)
    other, _ = _distiller("last_layer", seed=4)
    assert torch.equal(one.projection.weight, same.projection.weight)
    assert not torch.equal(one.projection.weight, other.projection.weight)
    state = {f"parameter.{name}": value for name, value in one.named_parameters()}
    assert encoder_state(state).keys() == dict(one.bert.named_parameters()).keys()


@given(updates=st.integers(1, 300), ratio=st.floats(0, 0.99))
def test_the_rate_rises_then_falls_and_is_never_wasted(updates, ratio):
    rates = [learning_rate(i, updates=updates, peak=0.1, warmup_ratio=ratio) for i in range(1, updates + 1)]
    assert all(0 < rate <= 0.1 for rate in rates)
    assert max(rates) == pytest.approx(0.1)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
