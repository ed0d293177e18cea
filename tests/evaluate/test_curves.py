"""What is read off loss curves."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etd_ds.contract import events, rundir, shape, spec
from etd_ds.evaluate import curves
from etd_ds.evaluate.curves import Curve, Point


def curve(*losses: float, every: int = 10, cost: float = 2.0) -> Curve:
    return Curve(tuple(Point(i * every, loss) for i, loss in enumerate(losses)), cost)


def test_between_measurements_the_loss_falls_on_a_straight_line() -> None:
    falling = curve(3.0, 2.0, 1.0)
    assert curves.share_to_reach(falling, 2.0) == 0.5
    assert curves.share_to_reach(falling, 1.5) == 0.75
    assert curves.share_to_reach(falling, 1.0) == 1.0
    assert curves.share_to_reach(falling, 0.9) is None
    assert curves.share_to_reach(falling, 3.0) == curves.share_to_reach(falling, 5.0) == 0.0


@given(st.lists(st.floats(0.1, 9), min_size=2, max_size=9), st.floats(0.1, 9), st.floats(0.1, 9))
def test_a_lower_target_is_never_reached_sooner(losses: list[float], a: float, b: float) -> None:
    easy, hard = (curves.share_to_reach(curve(*losses), target) for target in (max(a, b), min(a, b)))
    if hard is not None:
        assert easy is not None
        assert 0 <= easy <= hard <= 1


@given(st.lists(st.floats(0.1, 9), min_size=2, max_size=9))
def test_a_falling_run_reaches_its_own_end_at_its_whole_cost_and_not_later(losses: list[float]) -> None:
    falling = curve(*sorted(losses, reverse=True))
    share = curves.cost_to_reach(falling, falling)
    assert share is not None
    assert share <= 1 + 1e-12
    if sorted(losses)[0] < sorted(losses)[1]:
        assert share == pytest.approx(1)


def test_shares_are_of_the_other_runs_cost() -> None:
    cheap, dear = curve(3.0, 1.0, cost=1.0), curve(3.0, 2.0, 1.0, cost=4.0)
    # as good after 10 steps of cost 1, where the other needs 20 of cost 4
    assert curves.cost_to_reach(cheap, dear) == pytest.approx(10 / 80)
    assert curves.cost_to_reach(curve(3.0, 2.0), dear) is None


def test_a_resumed_run_counts_each_step_once_and_the_later_measurement(tmp_path: Path) -> None:
    run = rundir.RunDir(tmp_path)
    job = spec.JobSpec(layers=2, hidden=96, steps=4, seq_length=32, batch_size=8)
    rundir.publish_json(run.job, job)
    teacher = shape.EncoderShape(layers=6, hidden=384, heads=12, ffn=1536)
    rundir.publish_json(
        run.plan,
        rundir.Plan(
            teacher=teacher,
            student=shape.student(job, teacher),
            teacher_sha256="",
            corpus_sha256=None,
            teacher_layers=(3, 6),
            teacher_parameters=2,
            student_parameters=1,
            compression=2.0,
            seconds=0.0,
            scores_cached=None,
        ),
    )
    for step, loss in ((0, 3.0), (2, 2.0), (4, 1.5), (4, 1.25)):
        events.append(run.events, events.Validation(step=step, loss=loss, terms={}))
    found = curves.of_run(run)
    assert found.points == ((0, 3.0), (2, 2.0), (4, 1.25))
    assert found.final == 1.25
    assert found.flops_per_step > 0
