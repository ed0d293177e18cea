"""Checkpoints: one folder a step, published by one rename, with a digest of every file; the newest whole one counts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from etd_ds.contract import rundir

STATE, PROGRESS, DIGESTS = "state.safetensors", "progress.json", "digests.json"
LATEST = "latest.json"
_NAME = re.compile(r"step-(\d{8})")


class Progress(BaseModel):
    """How far a run has come: everything but the tensors that the next attempt needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = 0
    """Optimizer steps done. It is also the position in the data and the seed of dropout."""
    tokens: int = 0
    seconds: float = 0.0
    """Wall time of training, all attempts together."""
    first_loss: float | None = None
    corpus: str | None = None
    """Key of the corpus that it learned from; checkpoints of old do not say."""
    validation_before: dict[str, float] | None = None
    validation_after: dict[str, float] | None = None
    scalars: dict[str, float] = {}
    """Adam's step count, and fp16's loss scale."""


class Found(NamedTuple):
    path: Path
    progress: Progress

    def tensors(self) -> dict[str, Tensor]:
        """The engine's whole state, in fp32 on the CPU."""
        return safetensors.torch.load_file(self.path / STATE)


def save(
    folder: Path,
    progress: Progress,
    state: Mapping[str, Tensor],
    *,
    keep: int,
    every: int = 1,
    guard: Callable[[], None],
) -> str:
    """Publish a checkpoint; forget all up to it but the newest `keep`, and the newest `keep` at multiples of `every`.

    So what interruptions leave crowds out no other. `guard` may forbid the publication at the last moment.

    Killed at any moment it leaves either the whole checkpoint or none, and those before it.
    """
    name = _name(progress.step)
    with rundir.publishing(folder / name) as aside:
        safetensors.torch.save_file(dict(state), aside / STATE)
        (aside / PROGRESS).write_text(progress.model_dump_json(indent=2) + "\n")
        digests = {part: rundir.digest(aside / part).model_dump() for part in (STATE, PROGRESS)}
        (aside / DIGESTS).write_text(json.dumps(digests, indent=2) + "\n")
        guard()
    rundir.publish_json(folder / LATEST, {"name": name})
    # later steps are of an earlier attempt and were passed over: they must not crowd out the one just written
    upto = [(step, path) for step, path in _newest_first(folder) if step <= progress.step]
    kept = {*upto[:keep], *[found for found in upto if found[0] % every == 0][:keep]}
    for found in upto:
        if found not in kept:
            shutil.rmtree(found[1])
    return name


def whole(folder: Path, warn: Callable[[str], None]) -> Iterator[Found]:
    """The checkpoints that are whole, newest first. One that is damaged is passed over with a warning."""
    for _, path in _newest_first(folder):
        try:
            yield Found(path, verified(path))
        except (OSError, ValueError) as error:
            warn(f"checkpoint {path.name} is damaged ({error}); it is not used")


def open_whole(folder: Path, step: int) -> Found:
    """The checkpoint of a step, one that `whole` has approved."""
    path = folder / _name(step)
    return Found(path, Progress.model_validate_json((path / PROGRESS).read_bytes()))


def clear_leftovers(folder: Path) -> None:
    """Remove what killed attempts left half-written."""
    for aside in folder.glob(".*.tmp"):
        shutil.rmtree(aside, ignore_errors=True)
    for old in folder.glob(".*.old"):
        shutil.rmtree(old, ignore_errors=True)


def verified(path: Path) -> Progress:
    """The progress of a checkpoint whose files are as they were written. Raises `OSError` or `ValueError`."""
    digests: Mapping[str, Mapping[str, object]] = json.loads((path / DIGESTS).read_bytes())
    for part in (STATE, PROGRESS):
        wanted, got = rundir.FileDigest.model_validate(digests.get(part)), rundir.digest(path / part)
        if wanted != got:
            raise ValueError(f"{part} has {got.size} bytes, sha256 {got.sha256[:12]}…; wanted {wanted.size} bytes")
    try:
        return Progress.model_validate_json((path / PROGRESS).read_bytes())
    except ValidationError as error:
        raise ValueError(f"{PROGRESS}: {error}") from None


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _newest_first(folder: Path) -> list[tuple[int, Path]]:
    return sorted(_named(folder), reverse=True)


def _named(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("step-*"):
        if match := _NAME.fullmatch(path.name):
            yield int(match[1]), path
