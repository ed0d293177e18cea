"""How fast one caller may ask: a bucket of tokens each, refilled steadily. How much a tenant may hold at once."""

from __future__ import annotations

import threading
import time
from collections import Counter

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


class Places:
    """Each tenant has `most` places; 0 gives as many as are asked for."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, tenant: str) -> bool:
        """Whether the tenant got one, which has to be given back."""
        with self._lock:
            if self._most and self._taken[tenant] >= self._most:
                return False
            self._taken[tenant] += 1
        return True

    def give_back(self, tenant: str) -> None:
        with self._lock:
            self._taken[tenant] -= 1
