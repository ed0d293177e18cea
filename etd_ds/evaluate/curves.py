"""Loss curves of runs, and what is read off them: final losses, and how soon one run is as good as another."""

from __future__ import annotations

import json
from typing import NamedTuple

from etd_ds import flops
from etd_ds.contract import events, rundir
from etd_ds.contract.spec import JobSpec


class Point(NamedTuple):
    step: int
    loss: float


class Curve(NamedTuple):
    """Held-out loss of one run over its steps, from 0, ascending."""

    points: tuple[Point, ...]
    flops_per_step: float
    """Floating point operations of a step with full sequences, teacher and student."""
    flops_before: float = 0.0
    """Of what extraction did on training text for this student alone: a refit, a measured choice of layers."""

    @property
    def final(self) -> float:
        """The loss after the last step."""
        return self.points[-1].loss

    def cost(self, step: float) -> float:
        """FLOPs up to a step, those before the first one too."""
        return self.flops_before + step * self.flops_per_step


def of_run(run: rundir.RunDir, *, mode: flops.Mode = "exact") -> Curve:
    """The curve in a run's events. Of a step that was measured twice (a resumed run) the later measurement counts."""
    measured = {event.step: event.loss for event in events.read(run.events) if isinstance(event, events.Validation)}
    job, plan = run.read_job(), run.read_plan()
    points = tuple(Point(*item) for item in sorted(measured.items()))
    return Curve(points, per_step(job, plan, mode=mode), _before(run, job, plan, mode=mode))


def _before(run: rundir.RunDir, job: JobSpec, plan: rundir.Plan, *, mode: flops.Mode) -> float:
    """What the manifest says was fitted: the teacher's and twice the student's forward pass over so many tokens.

    The second pass of the student stands for the normal equations of its linear maps, which cost about as much.
    """
    if job.refit == "none" and job.layer_selection != "measured":
        return 0.0
    manifest = json.loads((run.init / "extraction.json").read_bytes())
    tried = manifest.get("layers_tried", {"tokens_each": 0, "losses": {}})
    tokens = int(manifest.get("refit", {"tokens": 0})["tokens"]) + int(tried["tokens_each"]) * len(tried["losses"])
    teacher, student = (flops.forward(shape, job.seq_length, mode=mode) for shape in (plan.teacher, plan.student))
    return tokens / job.seq_length * (teacher + 2 * student)


def per_step(job: JobSpec, plan: rundir.Plan, *, mode: flops.Mode) -> float:
    """FLOPs of one optimizer step, all sequences full."""
    return flops.distillation(
        plan.teacher, plan.student, job.seq_length, job.batch_size, mode=mode, dropout=job.dropout > 0
    )


def share_to_reach(curve: Curve, target: float) -> float | None:
    """Part of the run's own steps after which its loss is `target` or less, between measurements a straight line.

    None if that never happens; 0 if it is so from the start.
    """
    last = curve.points[-1].step
    before: Point | None = None
    for point in curve.points:
        if point.loss <= target:
            if before is None:
                return point.step / last if last else 0.0
            between = (before.loss - target) / (before.loss - point.loss)
            return (before.step + between * (point.step - before.step)) / last
        before = point
    return None


def cost_to_reach(curve: Curve, other: Curve) -> float | None:
    """FLOPs until `curve` is as good as `other` at its end, as a share of all of `other`'s."""
    share = share_to_reach(curve, other.final)
    return None if share is None else curve.cost(share * curve.points[-1].step) / other.cost(other.points[-1].step)
