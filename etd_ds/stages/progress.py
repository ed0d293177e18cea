"""How far a long stage has come, told to whoever listens."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

Report = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all)"""


def silent(stage: str, done: int, total: int) -> None:
    """Tell nobody."""


def bar(*, quiet: bool = False) -> Report:
    """A progress bar on stderr; nothing when quiet or when stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        return silent
    bars: dict[str, Any] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            bars[stage] = tqdm(total=total, desc=stage, file=sys.stderr, dynamic_ncols=True)
        bars[stage].total = total  # of what is looked for, nobody knows the end before
        bars[stage].update(done - bars[stage].n)
        if done >= total:
            bars.pop(stage).close()  # the next student has the same stages

    return report
