"""What the routes answer, for the API's description. It is made in `view`; schemathesis holds the two together."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from etd_ds.contract import shape, spec
from service.status import Status


class Student(BaseModel):
    """The student, as it was extracted."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    parameters: int
    teacher_parameters: int
    compression: float
    teacher_layers: list[int]
    teacher: shape.EncoderShape
    teacher_sha256: str
    extraction_seconds: float
    scores_cached: bool | None


class Waiting(BaseModel):
    position: int
    reason: str


class Failure(BaseModel):
    code: str
    message: str


class File(BaseModel):
    size: int
    sha256: str
    url: str


class Result(BaseModel):
    steps: int
    tokens: int
    seconds: float
    validation_before: dict[str, float] | None
    validation_after: dict[str, float] | None
    files: dict[str, File]


class Job(BaseModel):
    id: str
    status: Status
    spec: spec.JobSpec
    student: Student | None
    events: str
    links: dict[str, str]
    hub: str
    labels: dict[str, str]
    priority: int
    webhook: str | None
    created: str
    started: str | None
    ended: str | None
    attempt: int
    asked: str | None
    queue: Waiting | None
    worker: str | None
    together_with: str | None
    cluster: dict[str, Any] | None
    progress: dict[str, Any] | None
    error: Failure | None
    log_tail: list[str]
    result: Result | None


class Page(BaseModel):
    data: list[Job]
    next: str | None


class Plan(BaseModel):
    teacher: shape.EncoderShape
    student: shape.EncoderShape
    teacher_layers: list[int]
    teacher_parameters: int
    parameters: int
    compression: float
    teacher_forward_flops: int
    forward_flops: int
    step_flops: int
    steps: int | None
    flops: int | None


class Checkpoint(BaseModel):
    name: str
    revision: str
    step: int
    time: float
    kept: bool
    validation_loss: float | None


class Checkpoints(BaseModel):
    data: list[Checkpoint]


class Events(BaseModel):
    """Events from an offset on; each has its `id`, `type` and `time`."""

    status: Status
    data: list[dict[str, Any]]
    next: int
