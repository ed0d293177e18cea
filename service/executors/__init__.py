"""Where attempts run. An executor starts them, says what it sees of them, and stops them; it decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from service.status import Seen


class Executor(Protocol):
    """One way of running attempts. Every method may be called again at any time, by any process of the server."""

    def start(self, jobs: Sequence[str], attempt: int, slots: tuple[int, ...], priority: int = 0) -> None:
        """Start one trainer for these jobs unless it was started before; `priority` is for a cluster's own queue.

        For all other calls it is an attempt of the first job.
        """

    def hold(self, job_id: str, attempt: int, since: float) -> None:
        """The attempt is still ours: its lease was renewed at that time of this machine's clock."""

    def look(self, job_id: str, attempt: int) -> Seen:
        """What is to be seen of the attempt."""

    def stop(self, job_id: str, attempt: int) -> None:
        """Ask the attempt to write a checkpoint and leave; what has not left after the grace is killed."""
