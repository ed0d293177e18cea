"""Counters of this process and the text that Prometheus reads."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Upper bounds of the latency histogram, in seconds."""


class Latencies:
    """How long answers took, by method, route and status: until their first byte."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str, int], list[int]] = defaultdict(lambda: [0] * (len(BOUNDS) + 1))
        self._sums: dict[tuple[str, str, int], float] = defaultdict(float)

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """Note an answer. Routes are named by their templates, so that ids make no new series."""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = getattr(scope.get("route"), "path", "none")
        bucket = next((number for number, bound in enumerate(BOUNDS) if seconds <= bound), len(BOUNDS))
        with self._lock:
            self._counts[method, route, status][bucket] += 1
            self._sums[method, route, status] += seconds

    def lines(self) -> list[str]:
        """The histogram in Prometheus' text format."""
        name = "etd_http_request_seconds"
        found = [f"# TYPE {name} histogram"]
        with self._lock:
            counts = {key: list(buckets) for key, buckets in self._counts.items()}
            sums = dict(self._sums)
        for (method, route, status), buckets in sorted(counts.items()):
            labels = {"method": method, "route": route, "status": str(status)}
            total = 0
            for bound, count in zip((*(f"{bound:g}" for bound in BOUNDS), "+Inf"), buckets, strict=True):
                total += count
                found.append(f"{name}_bucket{_labels({**labels, 'le': bound})} {total}")
            found.append(f"{name}_sum{_labels(labels)} {sums[method, route, status]:.6f}")
            found.append(f"{name}_count{_labels(labels)} {total}")
        return found


class AnswerMiddleware:
    """Tells of every answer: the request's scope, the status, and the seconds until its first byte."""

    def __init__(self, app: ASGIApp, tell: Sequence[Callable[[Scope, int, float], None]]) -> None:
        self._app = app
        self._tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        told = False

        def answer(status: int) -> None:
            nonlocal told
            told = True
            for tell in self._tell:
                tell(scope, status, time.perf_counter() - began)

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            if not told:  # its answer is made further out
                answer(500)
            raise


_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


def gauge(name: str, values: Iterable[tuple[Mapping[str, str], float]]) -> list[str]:
    """A gauge with its values by labels."""
    return [f"# TYPE {name} gauge", *(f"{name}{_labels(labels)} {value:g}" for labels, value in values)]


def _labels(labels: Mapping[str, str]) -> str:
    inner = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{inner}}}" if inner else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
