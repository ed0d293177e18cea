"""The rhythm of the loop, without training: how long the watchdog waits for what."""

import faulthandler
from types import SimpleNamespace

import pytest
import torch

from etd_ds.contract import errors
from etd_ds.distill import loop
from etd_ds.engine.checkpoint import Progress


def test_only_steps_are_hurried_by_the_watchdog(monkeypatch):
    armed, patience = [], {"step": [], "validate": [], "save": []}
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, exit: armed.append(seconds))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", armed.clear)
    monkeypatch.setattr(loop.Loop, "_step", lambda self, step: bool(patience["step"].append(armed[-1])))
    monkeypatch.setattr(loop.Loop, "_validate", lambda self: patience["validate"].append(armed[-1]))
    learner = SimpleNamespace(progress=Progress(), save=lambda progress: patience["save"].append(armed[-1]))
    unused = dict.fromkeys(("micro", "seq_length", "pad_to", "ranks", "guide", "stream", "validation"))
    rhythm = loop.Rhythm(steps=3, checkpoint_every=1, validate_every=1)
    loop.Loop([learner], rhythm, **unused, stop=SimpleNamespace(step=0)).run()
    assert patience["step"] == [loop.FIRST_STEP, loop.LEAST, loop.LEAST]
    assert patience["validate"] == [loop.FIRST_STEP] * 4
    assert patience["save"] == [loop.FIRST_STEP] * 3
    assert not armed


@pytest.mark.parametrize(("pass_", "done"), [("_validate", 0), ("_step", 4)])
def test_a_gpu_that_is_too_small_is_said_with_the_cure(monkeypatch, pass_, done):
    def too_much(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nSee the documentation")

    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: None)
    unused = dict.fromkeys(("pad_to", "ranks", "guide", "stream", "validation"))
    learner, rhythm = SimpleNamespace(progress=Progress(step=done)), loop.Rhythm(9, 1, 1)
    one = loop.Loop([learner], rhythm, micro=64, seq_length=512, **unused, stop=SimpleNamespace(step=done))
    monkeypatch.setattr(loop.Loop, pass_, too_much)
    said = rf"micro_batch_size: 64 .* at step {done + 1}; .*Tried to allocate 9 GiB\.\)$"
    with pytest.raises(errors.HardwareError, match=said):
        one.run()
