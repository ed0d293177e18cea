"""Recipes: a paper's rows as partial job specs at several scales, with its numbers beside them, read and checked."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from typing_extensions import Self

from etd_ds.contract import errors, flags, spec
from etd_ds.evaluate import tasks


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Table1(_Strict):
    """One line of the paper's Table 1; scores in per cent."""

    parameters: float
    flops: float | None = None
    sst2: float
    mnli: float
    mrpc: float
    cola: float
    qnli: float
    qqp: float
    stsb: float
    squad_f1: float
    squad_em: float
    average: float


class Table2(_Strict):
    """One line of the paper's Table 2; `score` is the mean over GLUE."""

    loss: float
    score: float
    squad_f1: float
    squad_em: float
    average: float


class Paper(_Strict):
    table1: Table1 | None = None
    table2: Table2 | None = None


class Trained(_Strict):
    """Where `row` first is as good as `reaches` at its end, as a share of its cost; the paper's is `percent`."""

    row: str
    reaches: str
    percent: float


class Row(_Strict):
    """A run (it has a `spec`), a point of another run's curve (`trained`), or numbers only."""

    name: str
    note: str = ""
    student: str | None = None
    spec: dict[str, Any] | None = None
    trained: Trained | None = None
    paper: Paper = Paper()

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.spec is None) != (self.student is None):
            raise ValueError(f"{self.name}: wanted student and spec together, or neither")
        if self.spec is not None and self.trained is not None:
            raise ValueError(f"{self.name}: wanted spec or trained, not both")
        return self


class Downstream(_Strict):
    """Changes of the paper's fine-tuning protocol, as flags of `etd-ds evaluate`."""

    learning_rates: tuple[float, ...] = ()
    epochs: tuple[int, ...] = ()
    train_limit: int | None = None
    eval_limit: int | None = None

    def argv(self) -> list[str]:
        """The flags."""
        found: list[str] = []
        for name, value in self:
            if value:
                values = value if isinstance(value, tuple) else (value,)
                found += [f"--{name.replace('_', '-')}", *map(str, values)]
        return found


class ScoreCurves(_Strict):
    """Which tasks are scored during training too, after which steps before the last; 0 is the student before it."""

    tasks: tuple[str, ...]
    steps: tuple[int, ...]


class Scale(_Strict):
    spec: dict[str, Any]
    students: dict[str, dict[str, Any]]
    seeds: tuple[int, ...]
    tasks: tuple[str, ...]
    evaluate: Downstream
    score_curves: ScoreCurves | None = None
    scaled_down: tuple[str, ...]


class Figure(_Strict):
    """Curves of `rows`: their held-out losses, or their downstream scores at a scale's `score_curves`."""

    name: str
    of: Literal["loss", "scores"] = "loss"
    rows: tuple[str, ...]


class Ordering(_Strict):
    better: str
    worse: str


class Beyond(_Strict):
    """Rows that the paper has not: each compared with `against`, and by how soon it is as good as `reach`."""

    rows: tuple[str, ...]
    against: str
    reach: str


class Recipes(_Strict):
    """A whole file."""

    title: str
    base: dict[str, Any]
    scales: dict[str, Scale]
    rows: tuple[Row, ...]
    figures: tuple[Figure, ...] = ()
    orderings: tuple[Ordering, ...] = ()
    beyond: Beyond | None = None

    def row(self, name: str) -> Row:
        """The row of that name. Raises `EtdError` listing those that there are."""
        for row in self.rows:
            if row.name == name:
                return row
        known = ", ".join(repr(row.name) for row in self.rows)
        raise errors.EtdError(f"rows: wanted some of {known}; got {name!r}", field="rows", got=name)

    def runnable(self) -> list[Row]:
        """The rows that are runs of their own."""
        return [row for row in self.rows if row.spec is not None]

    def scored_over_training(self) -> set[str]:
        """Names of the rows of which some figure draws the scores."""
        return {name for figure in self.figures if figure.of == "scores" for name in figure.rows}

    def job(self, row: Row, scale: str, seed: int) -> spec.JobSpec:
        """The checked spec of a row. Raises `EtdError` naming the field."""
        assert row.spec is not None
        assert row.student is not None
        at = self.scales[scale]
        return flags.parse({**self.base, **at.spec, **at.students[row.student], **row.spec, "seed": seed})

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = [row.slug for row in self.rows]
        if len(set(names)) != len(names):
            raise ValueError("rows: two have the same name, or names that make the same folder's")
        runs = {row.name for row in self.runnable()}
        if lacking := set(self._mentioned()) - runs:
            raise ValueError(f"named, but no row that runs: {', '.join(sorted(lacking))}")
        for scale, at in self.scales.items():
            tasks.named(list(at.tasks))
            for row in self.runnable():
                if row.student not in at.students:
                    raise ValueError(f"{row.name}: scale {scale} has no student {row.student!r}")
                job = self.job(row, scale, at.seeds[0])
                if not job.validation_sequences:
                    raise ValueError(f"{row.name}: scale {scale} measures no held-out loss (validation_sequences is 0)")
                if at.score_curves is not None:
                    _check_kept(scale, at.score_curves, job)
        return self

    def _mentioned(self) -> Iterator[str]:
        for row in self.rows:
            if row.trained is not None:
                yield from (row.trained.row, row.trained.reaches)
        for figure in self.figures:
            yield from figure.rows
        for ordering in self.orderings:
            yield from (ordering.better, ordering.worse)
        if self.beyond is not None:
            yield from (*self.beyond.rows, self.beyond.against, self.beyond.reach)


def _check_kept(scale: str, curves: ScoreCurves, job: spec.JobSpec) -> None:
    """Raise `ValueError` if a step to be scored is not before the last, or leaves no checkpoint behind."""
    tasks.named(list(curves.tasks))
    if job.steps is None:
        raise ValueError(f"{scale}: score_curves wants a schedule in steps, not epochs")
    saved = [*range(job.checkpoint_every, job.steps, job.checkpoint_every), job.steps]
    if lacking := set(curves.steps) - {0, *saved[-job.keep_checkpoints : -1]}:
        raise ValueError(
            f"{scale}: score_curves.steps: before the last step no checkpoint is kept of "
            f"{', '.join(map(str, sorted(lacking)))}; mend checkpoint_every or keep_checkpoints"
        )


def read(path: Path | None = None) -> Recipes:
    """Recipes from a YAML file; without one, the paper's. Raises `EtdError` that says what is wrong where."""
    named = "paper.yaml" if path is None else path.name
    try:
        if path is None:
            text = (
                importlib.resources.files("etd_ds")
                .joinpath("recipes")
                .joinpath("paper.yaml")
                .read_text(encoding="utf-8")
            )
        else:
            text = path.read_text(encoding="utf-8")
        return Recipes.model_validate(yaml.safe_load(text))
    except OSError as error:
        raise errors.EtdError(f"recipes: cannot read {named}: {error.strerror}", field="recipes") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise errors.EtdError(f"recipes: {named} is not YAML: {reason}", field="recipes") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise errors.EtdError(f"recipes: {named}: {where + ': ' if where else ''}{reason}", field="recipes") from None
