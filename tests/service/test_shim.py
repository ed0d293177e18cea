"""The supervisor of one attempt, by itself."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from etd_ds.contract import launch
from service.executors import shim


@pytest.fixture
def folder(tmp_path):
    order(tmp_path, 2, "pass")
    return tmp_path


def order(folder, attempt, code, **fields):
    argv = [sys.executable, "-c", code]
    given = {
        "attempt": attempt,
        "argv": argv,
        "cwd": str(folder),
        "log": str(folder / "log"),
        "grace": 0.2,
        "leash": 0.0,
    }
    (folder / "order.json").write_text(
        json.dumps({**given, "leash": 0.0, "first_line": "", "done": [str(folder / "result")], **fields})
    )


def recorded(folder, attempt):
    text = (folder / f"{attempt}.exit").read_text().strip()
    return json.loads(text)["code"] if text else None


@pytest.mark.parametrize("code", [0, 1, 85])
def test_it_writes_down_how_its_command_ended(folder, code):
    order(folder, 2, f"import sys; sys.exit({code})")
    assert shim.main(folder, 2) == 0
    assert recorded(folder, 2) == code


@pytest.mark.parametrize("mark", ["2.started", "3.started", "2.stop"])
def test_it_starts_nothing_that_was_run_or_is_not_wanted_any_more(folder, mark):
    (folder / mark).touch()
    assert shim.main(folder, 2) == shim.STALE
    assert not (folder / "log").exists()


DEAF = "import pathlib, signal, time; signal.signal(15, signal.SIG_IGN); pathlib.Path({!r}).touch(); time.sleep(600)"


def test_when_nobody_renews_the_lease_it_ends_what_it_has(folder):
    order(folder, 2, DEAF.format(str(folder / "up")), leash=0.6)
    assert shim.main(folder, 2) == 0
    assert (folder / "up").exists()
    assert recorded(folder, 2) is None, "that it was killed says nothing about it"
    assert shim.members(folder / "lock", None) == []


def test_a_shared_folder_that_is_away_for_a_while_does_not_end_it(folder, monkeypatch):
    exists = Path.exists

    def away(path):
        if path.name == "result" or (path.name == "2.stop" and (folder / "2.started").is_file()):
            raise OSError(errno.ESTALE, "Stale file handle")
        return exists(path)

    order(folder, 2, "import time; time.sleep(0.3)")
    monkeypatch.setattr(Path, "exists", away)
    assert shim.main(folder, 2) == 0
    assert recorded(folder, 2) == 0


def test_a_machine_that_goes_down_ends_the_trainer_first(folder):
    order(folder, 2, f"import pathlib, time; pathlib.Path({str(folder / 'up')!r}).touch(); time.sleep(0.5)")
    running = subprocess.Popen([sys.executable, "-m", "service.executors.shim", str(folder), "2"])
    while not (folder / "up").exists():
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=60) == 0
    assert recorded(folder, 2) == 0


def test_what_is_done_and_cannot_leave_is_ended_when_all_of_it_is_done(folder):
    done = [str(folder / "one"), str(folder / "two")]
    order(folder, 2, f"import pathlib, time; [pathlib.Path(p).touch() for p in {done}]; time.sleep(600)", done=done)
    assert shim.main(folder, 2) == 0
    assert recorded(folder, 2) == -9


def test_the_trainers_own_words_are_the_contracts():
    assert shim._OWN_WORDS == (launch.EXIT_DONE, launch.EXIT_BAD_INPUT, launch.EXIT_STOPPED)


def test_a_holder_that_ends_meanwhile_makes_no_strangers_members(folder, monkeypatch):
    """Whoever is gone has session 0, and so have the processes that came into a container from outside."""
    lock = folder / "lock"
    monkeypatch.setattr(shim, "processes", lambda: [os.getpid(), 2**22 + 1])
    monkeypatch.setattr(shim, "_stdin", lambda pid: "" if pid == os.getpid() else str(lock.resolve()))
    monkeypatch.setattr(shim, "_stat", lambda pid, number: 0)
    assert shim.members(lock, None) == []
