"""A wish to stop, from outside: SIGTERM, SIGUSR1 or Ctrl-C."""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(Exception):
    """The run was asked to stop; `step` steps are safe on disk."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after {step} steps")
        self.step = step


class Stop:
    """Remembers that a signal came. While `at_once`, the signal itself raises `Stopped`: there is nothing to save."""

    def __init__(self) -> None:
        self.asked = False
        self.at_once = True
        self.step = 0

    def listen(self) -> None:
        """From now on the three signals mean a wish to stop."""
        for number in SIGNALS:
            signal.signal(number, self._heard)

    def _heard(self, _number: int, _frame: FrameType | None) -> None:
        first, self.asked = not self.asked, True
        if first and self.at_once:
            raise Stopped(self.step)
