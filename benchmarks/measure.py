"""Interleaved timing that survives a busy machine: CPU seconds of this process, wall seconds, peak memory; medians."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Sample:
    """What one contender took, over all repetitions."""

    cpu: list[float]
    wall: list[float]
    peak_bytes: int
    gpu: bool = False

    @property
    def seconds(self) -> list[float]:
        """What counts: CPU seconds, but wall seconds where a GPU did the work."""
        return self.wall if self.gpu else self.cpu

    @property
    def median(self) -> float:
        """Median of the seconds that count."""
        return statistics.median(self.seconds)


def interleaved(
    contenders: Mapping[str, Callable[[], object]], repetitions: int, *, gpu: bool = False
) -> dict[str, Sample]:
    """Run all contenders in turn, `repetitions` times after one round that warms up and measures memory.

    One that does not fit into the GPU's memory is left out.
    """
    peaks: dict[str, int] = {}
    for name, work in contenders.items():
        with suppress(torch.OutOfMemoryError):
            peaks[name] = (_allocated_by if gpu else _peak_of)(work)
    cpu: dict[str, list[float]] = {name: [] for name in peaks}
    wall: dict[str, list[float]] = {name: [] for name in peaks}
    for _ in range(repetitions):
        for name in peaks:
            gc.collect()
            _finish(gpu)
            started, wall_started = time.process_time(), time.perf_counter()
            contenders[name]()
            _finish(gpu)
            cpu[name].append(time.process_time() - started)
            wall[name].append(time.perf_counter() - wall_started)
    return {name: Sample(cpu[name], wall[name], peaks[name], gpu) for name in peaks}


def _finish(gpu: bool) -> None:
    if gpu:
        torch.cuda.synchronize()


def _allocated_by(work: Callable[[], object]) -> int:
    """Bytes of the GPU that `work` adds at its highest, after one run that compiles and warms up."""
    work()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_of(work: Callable[[], object]) -> int:
    """Resident bytes that `work` adds at its highest; 0 where the system does not tell."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return 0
