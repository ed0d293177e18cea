"""Distillation losses: each literal definition stands in `definition`, its fast packed form beside it."""

from etd_ds.losses.objectives import OBJECTIVES, Objective, terms
from etd_ds.losses.packing import Segments, Taps, Totals, Wanted

__all__ = ["OBJECTIVES", "Objective", "Segments", "Taps", "Totals", "Wanted", "terms"]
