"""A job's statuses, and the one pure function that decides every change of them from what is asked and seen."""

from __future__ import annotations

from typing import Literal, NamedTuple

from etd_ds.contract import launch

Status = Literal["extracting", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
Wish = Literal["", "cancel", "pause", "resume", "retry"]
Action = Literal["", "start", "stop"]

STATUSES: tuple[Status, ...] = ("extracting", "queued", "running", "paused", "succeeded", "failed", "cancelled")
ENDED: frozenset[Status] = frozenset(("succeeded", "failed", "cancelled"))

# What a person may ask of a job, by its status. Cancelling what has ended is asked twice, not wrong.
ALLOWED: dict[Wish, frozenset[Status]] = {
    "cancel": frozenset(STATUSES),
    "pause": frozenset(("queued", "running", "paused")),
    "resume": frozenset(("queued", "running", "paused")),
    "retry": frozenset(("failed", "cancelled")),
}


class Seen(NamedTuple):
    """What is known of a running job's attempt, looked up in this order (a later look can only know more)."""

    started: bool = False
    """Its supervisor once held the lock."""
    alive: bool = False
    """Something of it holds the lock now."""
    exit_code: int | None = None
    """The trainer's exit status as the supervisor wrote it down; none if it is not known."""
    result: bool = False
    """`result.json` is there, which is success."""
    refused: bool = False
    """The executor will never run this attempt."""
    words: str = ""
    """What the executor has to say to people about the attempt's end."""


class Verdict(NamedTuple):
    """The status to have next, what the executor has to do, and why (`code` is stable, for machines)."""

    status: Status
    action: Action = ""
    code: str = ""


def decide(
    status: Status,
    wish: Wish,
    seen: Seen,
    *,
    tries_left: bool = False,
    retry_killed: bool = False,
    extracted: bool = True,
    in_company: bool = False,
) -> Verdict:
    """The next status. `tries_left`: a lost attempt may be started again; `retry_killed`: a killed one as well.

    `extracted`: the job has its initial student, so nothing but training is left to do. `in_company`: its trainer
    carried other jobs too, and any of them may have been the cause of a failure: then each is tried alone.
    """
    match status:
        case "extracting":
            return Verdict("cancelled" if wish == "cancel" else "extracting")
        case "queued":
            return Verdict({"cancel": "cancelled", "pause": "paused"}.get(wish, "queued"))  # type: ignore[arg-type]
        case "paused":
            return Verdict({"cancel": "cancelled", "resume": "queued"}.get(wish, "paused"))  # type: ignore[arg-type]
        case "failed" | "cancelled":
            return Verdict(("queued" if extracted else "extracting") if wish == "retry" else status)
        case "succeeded":
            return Verdict("succeeded")
    if seen.alive:
        return Verdict("running", "stop" if wish in ("cancel", "pause") else "")
    if seen.result:
        return Verdict("succeeded")
    if wish == "cancel":
        return Verdict("cancelled")
    if wish == "pause":
        return Verdict("paused")
    if seen.refused:
        return Verdict("queued", "", "apart") if in_company else Verdict("failed", "", "refused")
    if seen.exit_code is None and not seen.started:
        return Verdict("running", "start")
    code = cause(seen.exit_code)
    again = code == "stopped" or (
        tries_left and (code == "trainer_lost" or (code == "trainer_killed" and retry_killed))
    )
    if in_company and not again:
        return Verdict("queued", "", "apart")
    return Verdict("queued" if again else "failed", "", code)


def cause(exit_code: int | None) -> str:
    """Why an attempt without a result ended. The launcher reports a rank's signal n as 256 - n, a shell as 128 + n."""
    match exit_code:
        case None | launch.EXIT_PEERS_LOST:
            return "trainer_lost"
        case launch.EXIT_STOPPED:
            return "stopped"
        case launch.EXIT_BAD_INPUT:
            return "bad_input"
        case launch.EXIT_DONE:  # the launcher says 0 when its own child was killed
            return "trainer_killed"
    return "trainer_killed" if exit_code < 0 or exit_code > 128 else "trainer_crashed"


NO_FAULT = frozenset(("stopped", "apart"))
"""Causes that cost a job none of its tries."""

MESSAGES = {
    "refused": "It cannot be run as asked.",
    "trainer_lost": "The trainer vanished, or its machines lost touch with each other; see the last log lines.",
    "trainer_killed": "The trainer was killed from outside, often for want of memory; see the last log lines.",
    "trainer_crashed": "The trainer failed; see the last log lines.",
    "bad_input": "The trainer refused the job; see the last log lines.",
    "disk_full": "The disk is full. Free some space, then retry the job: it continues from its last checkpoint.",
    "stopped": "The trainer was stopped from outside and continues from its checkpoint.",
}
"""What a person reads for each code, when the trainer itself left no better words."""
