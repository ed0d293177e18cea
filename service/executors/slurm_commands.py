"""Slurm's own commands, as they are on every login node: submit, list, signal, cancel. Nothing is remembered here."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from typing import NamedTuple

from service.settings import inherited

# A controller that does not answer holds `squeue` for 18 s; a scheduler's lease must outlast one such wait.
TIMEOUT = 8.0

_AWAY = re.compile(
    r"unable to contact|socket timed out|connection (refused|timed out|reset)|temporarily|zero bytes|munge"
    r"|authentication|no route to host|try again|job submit limit|resource temporarily|slurm_load_jobs error",
    re.IGNORECASE,
)
"""Words of failures that pass. Every other refusal is about the request itself."""

# https://slurm.schedmd.com/squeue.html#SECTION_JOB-STATE-CODES
ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
     "TIMEOUT")
)  # fmt: skip


class Away(Exception):
    """Slurm's controller does not answer, or cannot take work just now: nothing is known."""


class Refused(Exception):
    """Slurm will not run this request; the message is its reason."""


class Entry(NamedTuple):
    """One job as `squeue` lists it."""

    id: int
    state: str
    reason: str
    nodes: str
    name: str
    comment: str

    @property
    def ended(self) -> bool:
        return self.state in ENDED


def submit(script: str) -> int:
    """Hand in a batch script; the Slurm id. Raises `Away` or `Refused`. After `Away` it may have been taken."""
    done = _run("sbatch", "--parsable", given=script)
    try:
        return int(done.split(";")[0])
    except ValueError:
        raise Away(f"sbatch: wanted a job's number, got {done!r}") from None


def mine() -> list[Entry]:
    """All jobs of this user that the controller knows, those ended lately included. Raises `Away`."""
    try:
        listed = _run("squeue", "--noheader", "--all", "--states=all", "--me", "--format=%i|%T|%r|%N|%j|%k")
    except Refused as odd:  # there is nothing about this question to refuse
        raise Away(str(odd)) from None
    return [entry for line in listed.splitlines() if (entry := _entry(line)) is not None]


def terminate(number: int) -> None:
    """SIGTERM to all ranks; nobody is killed. Raises `Away`."""
    _cancel("--signal=TERM", str(number))


def withdraw(number: int) -> None:
    """Take back a job that has not begun. Raises `Away`."""
    _cancel("--state=PENDING", str(number))


def kill(number: int) -> None:
    """End a job: SIGTERM, and SIGKILL after the cluster's KillWait. Raises `Away`."""
    _cancel(str(number))


def _cancel(*arguments: str) -> None:
    with contextlib.suppress(Refused):  # it has ended meanwhile
        _run("scancel", "--quiet", *arguments)


def _entry(line: str) -> Entry | None:
    parts = line.split("|", 5)
    if len(parts) < 6 or not parts[0].isdigit():  # an array's task is none of ours
        return None
    number, state, *rest = parts
    return Entry(int(number), state.split()[0], *rest)


def _run(*command: str, given: str | None = None) -> str:
    # a server that itself runs inside an allocation must not hand that on
    env = {name: value for name, value in inherited().items() if not name.startswith(_ALLOCATION)}
    try:
        done = subprocess.run(
            command,
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            text=True,
            errors="replace",  # other jobs of this user may have any name
            timeout=TIMEOUT,
            env=env,
        )
    except subprocess.TimeoutExpired:
        raise Away(f"{command[0]} did not answer within {TIMEOUT:g} s") from None
    except OSError as error:
        raise Away(f"{command[0]}: {os.strerror(error.errno or 0)}") from None
    said = " ".join(done.stderr.split())
    if done.returncode < 0 or (done.returncode and _AWAY.search(said)):
        raise Away(f"{command[0]}: {said or 'killed'}")
    if done.returncode:
        raise Refused(said.removeprefix(f"{command[0]}: error: ") or f"{command[0]} failed with {done.returncode}")
    return done.stdout.strip()


_ALLOCATION = ("SLURM_JOB", "SLURM_STEP", "SLURM_TASK", "SLURM_NTASKS", "SLURM_NNODES", "SLURM_PROCID", "SLURM_MEM",
               "SLURM_NODELIST", "SLURM_LOCALID", "SLURM_CPU", "SLURM_GPUS", "SLURM_TRES", "SBATCH_")  # fmt: skip
