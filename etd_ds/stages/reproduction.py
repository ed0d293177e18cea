"""Recipes as folders: each row and seed an ordinary run folder, and the scores of its student beside it.

OUT/reproduction.json            what was asked: recipes, scale, seeds, rows
OUT/runs/<row>-seed<n>/          the run folder
OUT/scores/<row>-seed<n>/        `etd-ds evaluate` of its student; `OUT/scores/teacher/` of its teacher
OUT/scores/<row>-seed<n>/step-<k>/    the same of the student as it was after so many steps
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from etd_ds.contract import errors, rundir, spec
from etd_ds.evaluate.recipes import Recipes, Row

TEACHER = "teacher"


class Reproduction(BaseModel):
    """What a folder reproduces: all that a report needs beside the runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipes: Recipes
    scale: str
    seeds: tuple[int, ...]
    rows: tuple[str, ...]

    def job(self, member: Member) -> spec.JobSpec:
        """The spec of one run of it."""
        return self.recipes.job(member.row, self.scale, member.seed)


class Member(NamedTuple):
    """One row with one seed."""

    row: Row
    seed: int
    run: rundir.RunDir
    scores: Path

    def scores_at(self, step: int) -> Path:
        """Where the scores of a step before the last stand."""
        return self.scores / f"step-{step}"


def members(out: Path, asked: Reproduction) -> list[Member]:
    """Every row and seed of a reproduction, seed by seed."""
    rows = [row for row in asked.recipes.runnable() if row.name in asked.rows]
    return [
        Member(row, seed, rundir.RunDir(out / "runs" / name), out / "scores" / name)
        for seed in asked.seeds
        for row in rows
        for name in [f"{row.slug}-seed{seed}"]
    ]


def keep(out: Path, asked: Reproduction) -> None:
    """Write down what is asked. Rows and seeds may be added later; what was asked for before stays as it was.

    Raises `RunFolderError` if the scale is another one, or a known row is gone or means another run.
    """
    path = out / "reproduction.json"
    if path.exists():
        known = read(out)
        order = [row.name for row in asked.recipes.rows]
        if known.scale != asked.scale or not {*known.rows} <= {*order}:
            raise _other(out)
        rows = sorted({*known.rows, *asked.rows}, key=order.index)
        seeds = sorted({*known.seeds, *asked.seeds})
        asked = asked.model_copy(update={"rows": tuple(rows), "seeds": tuple(seeds)})
    for member in members(out, asked):
        if member.run.job.exists() and member.run.read_job() != asked.job(member):
            raise _other(out)
    rundir.publish_json(path, asked)


def _other(out: Path) -> errors.RunFolderError:
    return errors.RunFolderError(f"{out}: reproduces other recipes or another scale; give another --out")


def read(out: Path) -> Reproduction:
    """What a folder reproduces. Raises `RunFolderError`."""
    path = out / "reproduction.json"
    try:
        return Reproduction.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise errors.RunFolderError(f"{out}: no reproduction.json; was `etd-ds reproduce --out {out}` run?") from None
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise errors.RunFolderError(f"{path}: not a reproduction of ours: {reason}") from None


def lay(run: rundir.RunDir, job: spec.JobSpec) -> None:
    """Write a run's spec, unless it is there."""
    if not run.job.exists():
        run.root.mkdir(parents=True, exist_ok=True)
        rundir.publish_json(run.job, job)
