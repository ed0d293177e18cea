"""The rhythm of the loop, without training: how long the watchdog waits for what."""

import faulthandler
from types import SimpleNamespace

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
