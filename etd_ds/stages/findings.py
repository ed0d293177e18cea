"""What a reproduction's folders hold, as numbers: losses, costs and scores by row and seed."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from statistics import mean

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from etd_ds.contract import errors, events, rundir, spec
from etd_ds.evaluate import curves, metrics, tasks
from etd_ds.evaluate.curves import Curve
from etd_ds.evaluate.summaries import Summary
from etd_ds.stages.reproduction import TEACHER, Member, Reproduction, members


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class About(_Data):
    """Where and by what findings were made."""

    python: str
    versions: dict[str, str]
    processor: str
    cores: int
    memory_gib: float


class Finished(_Data):
    """One run that has succeeded."""

    seed: int
    plan: rundir.Plan
    objective: str
    curve: Curve
    paper_flops: float
    """Of the whole training, counted as the paper does."""
    scores: dict[str, Summary]
    """Downstream, by task."""
    scores_at: dict[int, dict[str, Summary]] = {}
    """The same after fewer steps, where they were asked for."""
    device: str

    @property
    def flops(self) -> float:
        """Of the whole run, a refit and a measured choice of layers too, counted exactly."""
        return self.curve.cost(self.curve.points[-1].step)


class Findings(_Data):
    """All numbers of a reproduction; as JSON they can be kept, and reported without its folders."""

    about: About
    asked: Reproduction
    runs: dict[str, dict[int, Finished]]
    """Row name -> seed -> run, those that are finished."""
    teacher: dict[str, Summary]
    missing: tuple[str, ...]

    def losses(self, row: str) -> tuple[float, ...]:
        """Final held-out losses."""
        return tuple(run.curve.final for run in self.runs.get(row, {}).values())

    def starts(self, row: str) -> tuple[float, ...]:
        """Held-out losses before the first step."""
        return tuple(run.curve.points[0].loss for run in self.runs.get(row, {}).values())

    def scores(self, row: str, task: str) -> tuple[float, ...]:
        """Headline scores in per cent."""
        return tuple(run.scores[task].headline for run in self.runs.get(row, {}).values() if task in run.scores)

    def shares(self, row: str, reaches: str) -> list[float | None]:
        """By seed that both have: the cost at which `row` is as good as `reaches` at its end, as a share of that's."""
        both = self.runs.get(row, {}).keys() & self.runs.get(reaches, {}).keys()
        return [
            curves.cost_to_reach(self.runs[row][seed].curve, self.runs[reaches][seed].curve) for seed in sorted(both)
        ]

    def differences(self, better: str, worse: str, task: str | None = None) -> list[float]:
        """By seed that both have: by how much `better` is better, in loss or in a task's headline score."""
        found = []
        both = self.runs.get(better, {}).keys() & self.runs.get(worse, {}).keys()
        for seed in sorted(both):
            a, b = self.runs[better][seed], self.runs[worse][seed]
            if task is None:
                found.append(b.curve.final - a.curve.final)
            elif task in a.scores and task in b.scores:
                found.append(a.scores[task].headline - b.scores[task].headline)
        return found

    def agreement(self, task: str, objective: str = "last_layer") -> tuple[int, float]:
        """How many rows with that loss were scored, and Spearman's correlation of mean losses, negated, and scores."""
        rows = [
            row
            for row, runs in self.runs.items()
            if self.scores(row, task) and next(iter(runs.values())).objective == objective
        ]
        losses, scores = ([mean(of(row)) for row in rows] for of in (self.losses, lambda row: self.scores(row, task)))
        return len(rows), metrics.spearman(-np.array(losses), np.array(scores)) / 100 if rows else 0.0

    def loss_curve(self, row: str) -> dict[int, tuple[float, ...]]:
        """Held-out losses by step, at those steps that every seed has measured."""
        by_run = [dict(run.curve.points) for run in self.runs.get(row, {}).values()]
        shared = sorted(set.intersection(*(set(one) for one in by_run))) if by_run else []
        return {step: tuple(one[step] for one in by_run) for step in shared}

    def score_curve(self, row: str, task: str) -> dict[int, tuple[float, ...]]:
        """Headline scores by step, the last one too, where the row was scored over its training."""
        found: dict[int, tuple[float, ...]] = {}
        for run in self.runs.get(row, {}).values():
            if run.scores_at and task in run.scores:
                for step, scores in (*run.scores_at.items(), (run.curve.points[-1].step, run.scores)):
                    if task in scores:
                        found[step] = (*found.get(step, ()), scores[task].headline)
        return dict(sorted(found.items()))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that any student was scored on, in the table's order."""
        scored = {task for row in self.runs.values() for run in row.values() for task in run.scores}
        return tuple(name for name in tasks.TASKS if name in scored)


def collect(out: Path, asked: Reproduction) -> Findings:
    """Read every run and score of a reproduction. Unfinished runs are named in `missing`."""
    runs: dict[str, dict[int, Finished]] = {}
    missing = []
    for member in members(out, asked):
        found = _finished(member, asked)
        if found is None:
            missing.append(f"{member.row.name}, seed {member.seed}")
        else:
            runs.setdefault(member.row.name, {})[member.seed] = found
    teacher = _summaries(out / "scores" / TEACHER)
    return Findings(about=_about(), asked=asked, runs=runs, teacher=teacher, missing=tuple(missing))


def read(file: Path) -> Findings:
    """Findings kept as JSON. Raises `EtdError`."""
    try:
        return Findings.model_validate_json(file.read_bytes())
    except OSError as error:
        raise errors.EtdError(f"results: cannot read {file}: {error.strerror}", field="results") from None
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise errors.EtdError(f"results: {file} holds no findings of ours: {reason}", field="results") from None


def _about() -> About:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return About(
        python=platform.python_version(),
        versions={name: metadata.version(name) for name in ("etd-ds", "torch", "deepspeed", "transformers")},
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(memory / 2**30, 1),
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _finished(member: Member, asked: Reproduction) -> Finished | None:
    if not member.run.result.exists():
        return None
    job, plan = member.run.read_job(), member.run.read_plan()
    curve = curves.of_run(member.run)
    if not curve.points:
        return None
    attempts = [event for event in events.read(member.run.events) if isinstance(event, events.Attempt)]
    return Finished(
        seed=member.seed,
        plan=plan,
        objective=job.objective,
        curve=curve,
        paper_flops=curve.points[-1].step * curves.per_step(job, plan, mode="electra_compat"),
        scores=_summaries(member.scores),
        scores_at=_scores_at(member, asked),
        device=attempts[-1].device if attempts else "",
    )


def _scores_at(member: Member, asked: Reproduction) -> dict[int, dict[str, Summary]]:
    wanted = asked.recipes.scales[asked.scale].score_curves
    found = {step: _summaries(member.scores_at(step)) for step in (wanted.steps if wanted else ())}
    return {step: scores for step, scores in found.items() if scores}


def _summaries(folder: Path) -> dict[str, Summary]:
    found = {path.stem: Summary.model_validate_json(path.read_bytes()) for path in sorted(_files(folder))}
    # findings are handed around: they say nothing of this machine's folders
    return {task: one.model_copy(update={"model": spec.public_name(one.model)}) for task, one in found.items()}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("*.json") if path.stem in tasks.TASKS)
