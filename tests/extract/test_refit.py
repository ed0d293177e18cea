"""A refit student against its laws: one that keeps everything stays its teacher, and each level comes nearer to it."""

from __future__ import annotations

from typing import get_args

import pytest
import random_berts
import torch
import torch.nn.functional as F
from transformers import BertModel

from etd_ds.bert import refit
from etd_ds.bert.encoder import Attention, Packed, embedded, encode
from etd_ds.contract import spec
from etd_ds.contract.shape import EncoderShape
from etd_ds.contract.shape import student as shape_of
from etd_ds.extract import apply, plan
from etd_ds.losses import Segments, Taps, Wanted
from etd_ds.losses.scores import score_mse_sum

SHAPE = EncoderShape(layers=4, hidden=24, heads=3, ffn=40, vocab=50, positions=16, token_types=2)
LENGTHS = [16, 16, 5, 9, 1] * 12


def text(seed: int) -> Packed:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, SHAPE.vocab, (sum(LENGTHS),), generator=generator)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    return Packed(ids, positions, torch.zeros_like(ids), Segments.packed(LENGTHS))


def cut(teacher: BertModel, job: spec.JobSpec) -> tuple[BertModel, plan.Cut]:
    shape = shape_of(job, SHAPE)
    chosen = plan.drawn(job, SHAPE, shape)
    state = apply.student(random_berts.state_of(teacher), chosen, frozenset({"pooler"}))
    return random_berts.model_of("BertModel", shape, state), chosen


def taps(bert: BertModel, packed: Packed) -> Taps:
    """Hidden state and scores of the last layer."""
    last = frozenset({bert.config.num_hidden_layers})
    with torch.no_grad():
        return encode(bert, packed, Wanted(hidden=last, scores=last))


def last_hidden(bert: BertModel, packed: Packed) -> torch.Tensor:
    return taps(bert, packed).hidden[bert.config.num_hidden_layers]


@pytest.fixture(scope="module")
def teacher() -> BertModel:
    return random_berts.random_bert("BertModel", SHAPE)


def test_a_traced_layer_is_the_stock_layer(teacher: BertModel) -> None:
    packed = text(0)
    x = embedded(teacher, packed)
    attention = Attention(packed.segments, x)
    with torch.no_grad():
        x = teacher.embeddings.LayerNorm(x)
        for layer in teacher.encoder.layer:
            x = refit.run(layer, x, attention).hidden_TH
    torch.testing.assert_close(x, last_hidden(teacher, packed))


def test_a_student_that_keeps_everything_stays_its_teacher(teacher: BertModel, monkeypatch: pytest.MonkeyPatch) -> None:
    # without the penalty the fit is exact, and the teacher's own function is the exact answer
    monkeypatch.setattr(refit.closed_form.affine, "__kwdefaults__", {"ridge": 1e-12})
    job = spec.JobSpec(seq_length=16, layers=4, hidden=24, ffn=40, mode="rand", refit="all")
    student, chosen = cut(teacher, job)
    projection = refit.refit(teacher, student, chosen, text(1), level="all", hidden=((4, 4),))
    torch.testing.assert_close(last_hidden(student, text(2)), last_hidden(teacher, text(2)), atol=1e-4, rtol=1e-4)
    assert projection is not None
    hidden = last_hidden(teacher, text(2))
    torch.testing.assert_close(F.linear(hidden, *projection), hidden, atol=1e-4, rtol=1e-4)


def test_each_level_comes_nearer_to_the_teacher(teacher: BertModel) -> None:
    packed = text(3)
    its = taps(teacher, packed)
    hidden, scores = [], []
    for level in get_args(spec.Refit):
        job = spec.JobSpec(seq_length=16, layers=2, hidden=12, ffn=20, mode="rand", refit=level)
        student, chosen = cut(teacher, job)
        refit.refit(teacher, student, chosen, packed, level=level, hidden=())
        mine = taps(student, packed)
        hidden.append(float((mine.hidden[2] - its.hidden[4][:, chosen.top_H]).square().mean()))
        scores.append(float(score_mse_sum(mine.query[2], mine.key[2], its.query[4], its.key[4], packed.segments)))
    none, projection, outputs, norms, everything = hidden
    assert projection == none  # of the student itself, nothing is fitted yet
    assert max(norms, everything) < outputs < none
    assert scores[-1] < 0.5 * min(scores[:-1])  # queries and keys are fitted last, and they are the scores


def test_the_projection_is_the_best_one_for_the_layers_compared(teacher: BertModel) -> None:
    packed = text(4)
    student, chosen = cut(teacher, spec.JobSpec(seq_length=16, layers=2, hidden=12, ffn=20, mode="rand"))
    fitted = refit.refit(teacher, student, chosen, packed, level="projection", hidden=((0, 0), (1, 2), (2, 4)))
    assert fitted is not None
    wanted = frozenset({0, 1, 2}), frozenset({0, 2, 4})
    mine, its = (
        encode(bert, packed, Wanted(hidden=of)).hidden for bert, of in zip((student, teacher), wanted, strict=True)
    )
    x = torch.cat([mine[m] for m in (0, 1, 2)]).detach()
    y = torch.cat([its[n] for n in (0, 2, 4)]).detach()
    assert refit.refit(teacher, student, chosen, packed, level="projection", hidden=()) is None
    again = refit.closed_form.affine(x, y)
    torch.testing.assert_close(fitted.weight_GF, again.weight_GF)


def test_heads_stay_as_they_were_cut(teacher: BertModel) -> None:
    job = spec.JobSpec(seq_length=16, layers=2, hidden=12, ffn=20, mode="rand")
    student, chosen = cut(teacher, job)
    before = random_berts.state_of(student)
    before = {name: tensor.clone() for name, tensor in before.items()}
    refit.refit(teacher, student, chosen, text(5), level="all", hidden=())
    after = refit.fitted_state(student, before)
    assert after.keys() == before.keys()
    assert torch.equal(after["pooler.dense.weight"], before["pooler.dense.weight"])
    changed = {name.split(".")[-3] for name in before if not torch.equal(after[name], before[name])}
    assert {"attention", "self", "output", "0"} & changed
    embeddings = [name for name in before if "embeddings" in name and "LayerNorm" not in name]
    assert all(torch.equal(after[name], before[name]) for name in embeddings)
