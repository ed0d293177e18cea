"""A run that makes no sense any more stops with the step, the place in the data, and what to change."""

import math
from types import SimpleNamespace

import pytest
import torch

from etd_ds.contract import errors, events, spec
from etd_ds.distill import health
from etd_ds.distill.learner import Learner, Window
from etd_ds.engine.checkpoint import Progress
from etd_ds.engine.ranks import Ranks
from etd_ds.engine.runtime import Update

FINE = Update(grad_norm=1.0, loss_scale=None)


@pytest.mark.parametrize(
    ("loss", "update", "says"),
    [
        (math.nan, FINE, "lower learning_rate"),
        (math.inf, Update(1.0, 1024.0), "precision bf16 or fp32"),
        (1.0, Update(math.inf, None), "gradient became inf"),
        (1.0, Update(math.nan, 1.0, exhausted=True), "overflow"),
        (301.0, FINE, "diverged"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(loss, update, says):
    with pytest.raises(errors.TrainingError, match=says) as raised:
        health.check(loss, update, step=5, batch_size=8, first_loss=3.0)
    assert "step 5 (sequences 32 to 39 in data order)" in str(raised.value)


@pytest.mark.parametrize(
    ("loss", "update"), [(299.0, FINE), (3.0, Update(None, None)), (3.0, Update(math.nan, 2.0)), (0.0, FINE)]
)
def test_what_can_be_survived_is_let_pass(loss, update):
    health.check(loss, update, step=5, batch_size=8, first_loss=3.0)


def test_a_student_that_begins_as_its_teacher_may_lose_a_little():
    health.check(0.5, FINE, step=5, batch_size=8, first_loss=-1e-9)
    with pytest.raises(errors.TrainingError, match="diverged"):
        health.check(1.5, FINE, step=5, batch_size=8, first_loss=-1e-9)


@pytest.mark.parametrize(("step", "cure"), [(0, "weights of teacher and student"), (4, "lower learning_rate")])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_held_out_loss_that_is_not_finite_is_neither_said_nor_kept(step, cure, bad):
    said: list[events.Event] = []
    learner = Learner(
        job=spec.JobSpec(layers=2, hidden=24),
        steps=4,
        steps_per_epoch=4.0,
        ranks=Ranks(0, 1, 0, torch.device("cpu")),
        engine=None,
        distiller=SimpleNamespace(names=("attention", "hidden")),
        say=said.append,
        save=lambda progress: None,
        progress=Progress(step=step),
    )
    with pytest.raises(errors.TrainingError, match=f"after step {step}; .*{cure}"):
        learner.measured([1.0, bad])
    assert said == []
    assert learner.progress == Progress(step=step)
    learner.measured([1.0, 2.0])
    assert [event.loss for event in said] == [3.0]


def test_a_window_means_over_its_steps_and_starts_anew():
    window = Window(("attention", "hidden"))
    window.add([1.0, 4.0], tokens=30, slots=40, seconds=0.5)
    window.add([3.0, 2.0], tokens=30, slots=80, seconds=1.5)
    mean = window.close()
    assert mean.terms == {"attention": 2.0, "hidden": 3.0}
    assert (mean.tokens_per_second, mean.seconds_per_step, mean.padding_avoided) == (30.0, 1.0, 0.5)
    window.add([7.0, 7.0], tokens=1, slots=1, seconds=1.0)
    assert window.close().terms == {"attention": 7.0, "hidden": 7.0}
