"""The supervisor of one attempt: `python -m service.executors.shim FOLDER ATTEMPT`. It outlives the server.

Standard library only, so that it starts at once. Its folder holds `lock` (held, through standard input, by
everything that belongs to the job), `order.json` (what the executor wants), and per attempt `N.started`, `N.stop`
(made by the executor: leave!), `N.held` (when the lease on the job was last renewed) and `N.exit` (the trainer's exit
status, if it ended by itself).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TypedDict

LOCKED_OUT = 75
"""Another attempt of this job still lives: never two trainers in one folder."""
STALE = 76
"""The order is for another attempt, or this one has been run, or is not wanted any more."""

_EXIT_BYTES = 512
_OWN_WORDS = (0, 2, 85)
"""`contract.launch`'s exit codes: what a trainer says itself."""


class Order(TypedDict):
    """What `order.json` says."""

    attempt: int
    first_line: str
    """Of the log, before what the command prints."""
    argv: list[str]
    cwd: str
    log: str
    done: list[str]
    """The files whose presence means that the trainer has nothing left to do."""
    grace: float
    leash: float
    """Seconds without a renewed lease after which the trainer must be gone, since others may run its jobs then; 0: no
    such limit. It is asked to leave after half of them."""


def main(folder: Path, attempt: int) -> int:
    """Run the ordered command to its end, with everything it starts, and write down its exit status."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return LOCKED_OUT
    order: Order = json.loads((folder / "order.json").read_text())
    started = folder / f"{attempt}.started"
    newest = max((int(mark.stem) for mark in folder.glob("*.started")), default=0)
    if order["attempt"] != attempt or newest >= attempt or (folder / f"{attempt}.stop").exists():
        return STALE
    # room for the exit status is taken now: a disk that fills up later must not swallow it
    record = os.open(folder / f"{attempt}.exit", os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(record, b" " * _EXIT_BYTES, 0)
    os.fsync(record)
    started.touch()
    code = _supervise(folder, attempt, order, lock)
    if code is not None:
        text = json.dumps({"code": code, "time": time.time()}).encode()
        os.pwrite(record, text.ljust(_EXIT_BYTES), 0)  # one sector, so whole or not at all
        os.fsync(record)
    return 0


def _supervise(folder: Path, attempt: int, order: Order, lock: int) -> int | None:
    """The trainer's exit status; none if it was told to leave and ended otherwise, which says nothing about it."""
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(log, order["first_line"].encode())
    # standard input is the one descriptor that survives every launcher: through it the trainer holds the lock
    leader = subprocess.Popen(
        order["argv"],
        cwd=order["cwd"],
        stdin=lock,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    grace, leash, began = order["grace"], order["leash"], time.time()
    asked = finished = None
    while (code := leader.poll()) is None:
        time.sleep(0.1)
        silent = time.time() - max(began, _changed(folder / f"{attempt}.held")) if leash else 0.0
        if asked is None and (silent > leash / 2 or _there(folder / f"{attempt}.stop")):
            asked = time.monotonic()
            terminate(folder / "lock", leader.pid)
        if finished is None and all(_there(Path(one)) for one in order["done"]):
            finished = time.monotonic()
        # told to leave and did not, or done and cannot leave
        late = any(since is not None and time.monotonic() - since > grace for since in (asked, finished))
        if late or silent > leash:
            kill(folder / "lock", leader.pid)
    kill(folder / "lock", leader.pid)
    return code if asked is None or code in _OWN_WORDS else None


def _there(file: Path) -> bool:
    """Whether there is such a file; a shared folder that is away for a while must not end its watchman."""
    try:
        return file.exists()
    except OSError:
        return False


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def terminate(lock: Path, leader: int | None) -> None:
    """SIGTERM to the ranks. Not to the launcher: it would end them one by one, or leave without them."""
    everything = members(lock, leader)
    ranks = [pid for pid in everything if b"--local_rank=" in read(pid, "cmdline")]
    tops = [pid for pid in ranks if _stat(pid, _PARENT) not in ranks]
    for pid in tops or ([leader] if leader is not None else everything):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def kill(lock: Path, leader: int | None = None) -> None:
    """SIGKILL to everything of the job, until nothing is left."""
    while there := members(lock, leader):
        for pid in there:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def members(lock: Path, leader: int | None) -> list[int]:
    """Processes that have the lock as standard input, which only this job's have, and others of their sessions."""
    wanted = str(lock.resolve())
    everyone = processes()
    holders = {pid for pid in everyone if _stdin(pid) == wanted}
    sessions = {_stat(pid, _SESSION) for pid in holders} | ({leader} if leader is not None else set())
    sessions.discard(0)  # of a holder that has just ended, and of all processes that came from outside of a container
    return [
        pid for pid in everyone if (pid in holders or _stat(pid, _SESSION) in sessions) and read(pid, "cmdline")
    ]  # a dead process that nobody has waited for has no command line


_PARENT, _SESSION = 1, 3


def processes() -> list[int]:
    """Every process that there is."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _stat(pid: int, number: int) -> int:
    """A field of /proc/PID/stat, counted from the state; 0 if there is no such process."""
    values = read(pid, "stat").rpartition(b")")[2].split()
    return int(values[number]) if len(values) > number else 0


def _stdin(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/fd/0").readlink())
    except OSError:
        return ""


def read(pid: int, name: str) -> bytes:
    """A file of a process under /proc; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


if __name__ == "__main__":
    # whoever ends all processes of a machine asks the trainer too; somebody has to see how it leaves
    signal.signal(signal.SIGTERM, lambda *_: None)
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
