"""Attempts as processes of this machine, each under a supervisor that outlives the server."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from etd_ds.contract import launch, rundir
from service.executors import shim
from service.settings import Settings, inherited
from service.status import Seen


class LocalExecutor:
    """Runs `contract.launch.train_argv` on this machine. State is in the job's `supervisor` folder alone."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping: dict[tuple[str, int], float] = {}
        self._held: dict[str, float] = {}

    def start(self, jobs: Sequence[str], attempt: int, slots: tuple[int, ...], priority: int = 0) -> None:
        """Start a supervisor, unless one that we started for this job is just about to take the lock."""
        job_id = jobs[0]
        self._reap()
        child = self._children.get(job_id)
        if child is not None and child.poll() is None:
            return
        runs = [rundir.RunDir(self._settings.runs / one) for one in jobs]
        folder = self._folder(job_id)
        folder.mkdir(exist_ok=True)
        order: shim.Order = {
            "attempt": attempt,
            "first_line": f"{launch.ATTEMPT}{attempt}\n",
            "argv": self._argv(runs, slots),
            "cwd": str(self._settings.nowhere),
            "log": str(runs[0].log),
            "done": [str(one.result) for one in runs],
            "grace": self._settings.grace,
            "leash": self._settings.lost_after,
        }
        rundir.publish_json(folder / "order.json", dict(order))
        self._children[job_id] = subprocess.Popen(
            [sys.executable, "-m", "service.executors.shim", str(folder), str(attempt)],
            cwd=launch.REPOSITORY,
            env=inherited() | self._env(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def hold(self, job_id: str, attempt: int, since: float) -> None:
        """Lengthen the supervisor's leash, now and then."""
        leash = self._settings.lost_after
        if leash and since - self._held.get(job_id, 0.0) > leash / 10:
            self._held[job_id] = since
            mark = self._folder(job_id) / f"{attempt}.held"
            with contextlib.suppress(FileNotFoundError):  # not started yet
                mark.touch()
                os.utime(mark, (since, since))

    def look(self, job_id: str, attempt: int) -> Seen:
        """The order matters: whoever was started and then is not alive has written its exit, or never will."""
        folder = self._folder(job_id)
        started = (folder / f"{attempt}.started").exists()
        alive = _locked(folder / "lock")
        code = _exit_code(folder / f"{attempt}.exit")
        self._reap()
        return Seen(started, alive, code, rundir.RunDir(self._settings.runs / job_id).result.exists())

    def stop(self, job_id: str, attempt: int) -> None:
        """Leave word for the supervisor. Should that have been killed, its work is done from here."""
        folder = self._folder(job_id)
        folder.mkdir(exist_ok=True)
        word = folder / f"{attempt}.stop"
        if not word.exists():
            word.touch()
        if _supervised(folder):
            return
        asked = self._stopping.get((job_id, attempt))
        if asked is None:
            self._stopping[job_id, attempt] = time.monotonic()
            shim.terminate(folder / "lock", None)
        elif time.monotonic() - asked > self._settings.grace:
            shim.kill(folder / "lock")

    def _folder(self, job_id: str) -> Path:
        return self._settings.runs / job_id / "supervisor"

    def _argv(self, runs: Sequence[rundir.RunDir], slots: tuple[int, ...]) -> list[str]:
        if self._settings.trainer_command:
            roots = [str(run.root) for run in runs]
            return [*self._settings.trainer_command, "--run", *roots, "--cache", str(self._settings.cache)]
        run, *others = runs
        devices = slots if self._settings.gpus else None
        return launch.train_argv(run, run.read_job(), cache=self._settings.cache, devices=devices, together=others)

    def _env(self) -> dict[str, str]:
        cpu = self._settings.gpus == 0
        threads = (os.cpu_count() or 1) // max(self._settings.slots, self._settings.gpus)
        return launch.train_env(cpu=cpu, threads_per_rank=max(1, threads))

    def _reap(self) -> None:
        for job_id, child in list(self._children.items()):
            if child.poll() is not None:
                del self._children[job_id]


def _locked(lock: Path) -> bool:
    try:
        fd = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def _supervised(folder: Path) -> bool:
    """Whether a supervisor of this folder is among the processes."""
    wanted = f"service.executors.shim\0{folder}\0".encode()
    return any(wanted in shim.read(pid, "cmdline") for pid in shim.processes())


def _exit_code(record: Path) -> int | None:
    try:
        return int(json.loads(record.read_text())["code"])
    except (FileNotFoundError, ValueError):  # it is blank until there is a code
        return None
