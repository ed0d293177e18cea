"""The run folder: every file name of a run stands here, and so does the one way to publish a file or folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from etd_ds.contract import errors, shape, spec

STUDENT_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "README.md",
    "extraction.json",
)
PROJECTION = "projection.safetensors"


@dataclass(frozen=True)
class RunDir:
    """Paths of one run. Making the object touches nothing."""

    root: Path

    @property
    def job(self) -> Path:
        """The checked `JobSpec`: the only input of a run."""
        return self.root / "job.json"

    @property
    def plan(self) -> Path:
        """`Plan`: what extraction decided. Written after `init`."""
        return self.root / "plan.json"

    @property
    def init(self) -> Path:
        """The extracted student before distillation, a stock Hugging Face folder."""
        return self.root / "init"

    @property
    def projection(self) -> Path:
        """The loss's fitted projection, `weight` (d_T, d_S) and `bias`, where the spec's `refit` asks for one."""
        return self.init / PROJECTION

    @property
    def events(self) -> Path:
        """Append-only JSON lines: what happened, in order."""
        return self.root / "events.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The numbers among the events, for TensorBoard, where the spec asks for them."""
        return self.root / "tensorboard"

    @property
    def log(self) -> Path:
        """Everything the launcher and the trainer print."""
        return self.root / "log.txt"

    @property
    def attempt(self) -> Path:
        """Who trains here now: token, host and pid of the newest attempt's first rank. An older one may not write."""
        return self.root / "attempt.json"

    @property
    def checkpoints(self) -> Path:
        """Training state, one folder a step; `checkpoints/latest.json` names the newest."""
        return self.root / "checkpoints"

    @property
    def revisions(self) -> Path:
        """Students made of checkpoints on demand: a folder each, and beside it `<its name>.json`, a `Revision`."""
        return self.root / "revisions"

    @property
    def student(self) -> Path:
        """The distilled student, a stock Hugging Face folder holding `STUDENT_FILES`."""
        return self.root / "student"

    @property
    def result(self) -> Path:
        """`Result`, written last: its presence means that the run succeeded."""
        return self.root / "result.json"

    def read_job(self) -> spec.JobSpec:
        """The spec of this run. Raises `RunFolderError` if `job.json` is missing or not valid."""
        return _read(self.job, spec.JobSpec)

    def read_plan(self) -> Plan:
        """What extraction decided. Raises `RunFolderError` if it has not happened."""
        return _read(self.plan, Plan)

    def read_result(self) -> Result | None:
        """The result, or `None` while the run has not succeeded."""
        return _read(self.result, Result) if self.result.exists() else None


class Plan(BaseModel):
    """What extraction decided and what it took: the answer to a student-shape request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: shape.EncoderShape
    student: shape.EncoderShape
    teacher_sha256: str
    """Hash of the teacher's weights file."""
    teacher_reference: str | None = None
    """What was found under the spec's `teacher`: for a hub id, with the commit. Later stages ask for this."""
    corpus_sha256: str | None
    """Hash of the sentences that were scored; none unless mode is `impt`."""
    teacher_layers: tuple[int, ...]
    """1-based teacher layer of each student layer; empty for mode `none`."""
    teacher_parameters: int
    student_parameters: int
    compression: float
    """Teacher parameters / student parameters."""
    seconds: float
    """Wall time of the extraction, scoring included when it was not cached."""
    scores_cached: bool | None
    """Whether the importance scores came from the cache; none unless mode is `impt`."""


class FileDigest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    sha256: str


class Revision(BaseModel):
    """A checkpoint that was made a student: published after its folder, so its presence means that it is whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    files: dict[str, FileDigest]


class Result(BaseModel):
    """A finished run: the sha256 of every file of the student, and how the loss went."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int
    tokens: int
    """Tokens that the student was trained on."""
    seconds: float
    """Wall time of training, all attempts together."""
    validation_before: dict[str, float] | None
    """Held-out loss (`loss` and its terms) of the extracted student, before the first step."""
    validation_after: dict[str, float] | None
    files: dict[str, FileDigest]
    """Every file of `student/`."""


def read_revision(path: Path) -> Revision:
    """The `Revision` of a file in `RunDir.revisions`. Raises `RunFolderError`."""
    return _read(path, Revision)


_Model = TypeVar("_Model", bound=BaseModel)


def _read(path: Path, kind: type[_Model]) -> _Model:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise errors.RunFolderError(f"{path}: missing; is {path.parent} a run folder, and was it extracted?") from None
    except ValidationError as error:
        raise errors.RunFolderError(f"{path}: not a valid {kind.__name__}: {error}") from None


def fsync_path(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def publish_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part: aside, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def publish_json(path: Path, value: BaseModel | dict[str, Any] | list[Any]) -> None:
    """`publish_bytes` of a pydantic model or of plain JSON data, indented."""
    text = value.model_dump_json(indent=2) if isinstance(value, BaseModel) else json.dumps(value, indent=2)
    publish_bytes(path, text.encode() + b"\n")


@contextmanager
def publishing(path: Path) -> Iterator[Path]:
    """A fresh folder to fill; on success it becomes `path` in one rename, on error nothing is left behind.

    An existing `path` is replaced. Files are made readable by the group and others (safetensors writes 0600).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for entry in sorted(aside.rglob("*"), reverse=True):
            if entry.is_file():
                entry.chmod(0o644)
            fsync_path(entry)
        fsync_path(aside)
        if path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.rename(old)
            aside.rename(path)
            shutil.rmtree(old)
        else:
            aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    fsync_path(path.parent)


def digest(path: Path) -> FileDigest:
    """Size and sha256 of a file, read in pieces."""
    sha256, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            size += len(chunk)
    return FileDigest(size=size, sha256=sha256.hexdigest())
