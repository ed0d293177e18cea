"""What a run writes for TensorBoard is what its events say, also after it went on from a checkpoint."""

import launching
import pytest

from etd_ds.contract import errors, events, launch
from etd_ds.distill import board


def _drawn(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [(event.step, event.value) for event in EventAccumulator(str(folder)).Reload().Scalars(name)]


def _step(step, loss, **fields):
    given = {"step": step, "steps": 9, "epoch": 0.5, "loss": loss, "terms": {"hidden": loss}, "learning_rate": 1e-3}
    return events.Step(**given, tokens=step * 100, tokens_per_second=10.0, eta_seconds=1.0, **fields)


def test_tensorboard_reads_back_the_numbers_and_forgets_steps_that_were_done_twice(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the package tensorboard (extra: tensorboard)")
    first = board.Board(tmp_path, 0)
    first.show(events.Validation(step=0, loss=3.0, terms={"hidden": 3.0}))
    for step, loss in ((1, 2.0), (2, 1.5), (3, 1.0)):
        first.show(_step(step, loss, grad_norm=0.5))
    first.show(events.Warn(message="nothing to draw"))
    first.close()
    second = board.Board(tmp_path, 2)
    second.show(_step(3, 1.25))
    second.close()

    assert _drawn(tmp_path, "loss") == _drawn(tmp_path, "terms/hidden") == [(1, 2.0), (2, 1.5), (3, 1.25)]
    assert _drawn(tmp_path, "grad_norm") == [(1, 0.5), (2, 0.5)]
    assert _drawn(tmp_path, "held_out/loss") == [(0, 3.0)]


def test_a_missing_package_is_named_before_any_work(monkeypatch):
    monkeypatch.setattr(board.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.EtdError, match=r"etd-ds\[tensorboard\]") as caught:
        board.check()
    assert caught.value.field == "tensorboard"


@pytest.mark.slow
def test_a_run_draws_what_its_events_say(make_run, small_world):
    pytest.importorskip("tensorboard", reason="needs the package tensorboard (extra: tensorboard)")
    run = make_run(steps=3, tensorboard=True)
    options = {"cache": small_world[2], "config": launching.CONFIGS / "zero2.json"}
    assert launching.train(run.root, **options) == [launch.EXIT_DONE] * 2
    said = [(e.step, e.loss) for e in events.read(run.events) if isinstance(e, events.Step)]
    drawn = _drawn(run.tensorboard, "loss")
    assert [step for step, _ in drawn] == [step for step, _ in said] == [1, 2, 3]
    assert [loss for _, loss in drawn] == pytest.approx([loss for _, loss in said], rel=1e-6)
    assert len(list(run.tensorboard.iterdir())) == 1
