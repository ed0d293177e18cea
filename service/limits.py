"""How fast one caller may ask: a bucket of tokens each, refilled steadily."""

from __future__ import annotations

import threading
import time

_MOST_CALLERS = 10_000


class Limiter:
    """Allows `per_minute` requests a minute to each caller, as many at once after a quiet minute; 0 allows all."""

    def __init__(self, per_minute: int) -> None:
        self._most = float(per_minute)
        self._left: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def wait(self, caller: str, now: float | None = None) -> float:
        """Count a request: 0 when it is allowed, else the seconds until one would be."""
        if not self._most:
            return 0.0
        now = time.monotonic() if now is None else now
        with self._lock:
            left, since = self._left.pop(caller, (self._most, now))
            left = min(self._most, left + (now - since) * self._most / 60)
            allowed = left >= 1
            self._left[caller] = (left - 1 if allowed else left, now)
            while len(self._left) > _MOST_CALLERS:  # dictionaries keep their order: the quietest callers go
                del self._left[next(iter(self._left))]
        return 0.0 if allowed else (1 - left) * 60 / self._most
