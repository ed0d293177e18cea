"""Curves as SVG pictures. Needs matplotlib, an optional extra; without it there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Lines = Mapping[str, Sequence[tuple[float, float]]]
"""Name of a row -> (x, y)."""


def available() -> bool:
    """Whether pictures can be drawn here."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw(path: Path, lines: Lines, *, across: str, up: str = "held-out loss", logarithmic: bool = True) -> None:
    """Write an SVG of `up` over `across`. The same lines give the same bytes."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "etd-ds", "svg.fonttype": "none"}):
        from matplotlib.figure import Figure

        figure: Any = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for name, points in lines.items():
            axes.plot([x for x, _ in points], [y for _, y in points], label=name, marker=".", markersize=3)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        if logarithmic:
            axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
        figure.savefig(path, format="svg", metadata={"Date": None})
