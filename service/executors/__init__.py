"""Where attempts run. An executor starts them, says what it sees of them, and stops them; it decides nothing."""

from __future__ import annotations

from typing import Protocol

from service.status import Seen


class Executor(Protocol):
    """One way of running attempts. Every method may be called again at any time, by any process of the server."""

    def start(self, job_id: str, attempt: int, slots: tuple[int, ...], priority: int = 0) -> None:
        """Start the attempt unless it was started before; `priority` is for a cluster's own queue."""

    def look(self, job_id: str, attempt: int) -> Seen:
        """What is to be seen of the attempt."""

    def stop(self, job_id: str, attempt: int) -> None:
        """Ask the attempt to write a checkpoint and leave; what has not left after the grace is killed."""
