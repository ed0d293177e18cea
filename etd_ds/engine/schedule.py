"""The learning rate of each update."""

from __future__ import annotations

import math


def learning_rate(update: int, *, updates: int, peak: float, warmup_ratio: float) -> float:
    """Rate of the `update`-th of `updates` (from 1): a linear rise to `peak`, then a linear fall [ETD §4.1].

    No update is wasted at rate 0: the rise begins and the fall ends one step short of it.
    """
    warm = math.ceil(warmup_ratio * updates)
    if update <= warm:
        return peak * (update / warm)
    return peak * ((updates - update + 1) / (updates - warm + (1 if warm else 0)))
