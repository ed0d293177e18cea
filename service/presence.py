"""Who else is here: a lock that processes share for as long as they live, and that tells the first that it is."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class Presence:
    """One process' share of a lock file. `alone`: no other had it, and others wait until `settle` is called."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        self.alone = True
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            self.alone = False

    def settle(self) -> None:
        """What only the first may do is done: let the others in."""
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def close(self) -> None:
        os.close(self._lock)
