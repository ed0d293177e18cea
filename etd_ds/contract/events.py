"""What a run says while it happens: one JSON object a line, appended whole, read from any byte offset."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    time: float = Field(default_factory=time.time)
    """Seconds since 1970, UTC."""


class Stage(_Event):
    """A stage of the run began (`start`), ended (`done`) or was found done (`skipped`)."""

    type: Literal["stage"] = "stage"
    stage: Literal["extract", "data", "distill", "export"]
    state: Literal["start", "done", "skipped"]
    detail: str = ""


class Progress(_Event):
    """How far a stage is that has no steps of its own: `done` of `total`, every few seconds."""

    type: Literal["progress"] = "progress"
    stage: Literal["extract"]
    part: str
    """What is being done, in words."""
    done: int
    total: int


class Attempt(_Event):
    """A trainer started on this folder; steps that follow an earlier attempt continue from `step`."""

    type: Literal["attempt"] = "attempt"
    step: int
    """Steps already done: 0, or those of the checkpoint that training continues from."""
    steps: int
    """Steps of the whole run."""
    world_size: int
    precision: str
    device: str
    sequences: int
    """Training sequences in the corpus."""


class Step(_Event):
    """Progress, every `log_every` optimizer steps; means are over the steps since the last such event."""

    type: Literal["step"] = "step"
    step: int
    """Optimizer steps done."""
    steps: int
    epoch: float
    loss: float
    terms: dict[str, float]
    """The loss by its named parts."""
    learning_rate: float
    grad_norm: float | None = None
    """Global gradient norm before clipping."""
    loss_scale: float | None = None
    """fp16 only."""
    tokens: int
    """Tokens trained on since step 0, padding not counted."""
    tokens_per_second: float
    eta_seconds: float
    padding_avoided: float | None = None
    """Share of token slots saved by packing, against every sequence padded to `seq_length`."""
    memory_bytes: int | None = None
    """Peak memory of the first rank: allocated on its GPU, or resident on a CPU."""


class Validation(_Event):
    """The loss on held-out sequences after `step` steps (0: the extracted student)."""

    type: Literal["validation"] = "validation"
    step: int
    loss: float
    terms: dict[str, float]


class Checkpoint(_Event):
    """A whole checkpoint is on disk under `checkpoints/<name>`."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int
    name: str


class Warn(_Event):
    """Something a person should know and the run survives."""

    type: Literal["warning"] = "warning"
    message: str


class End(_Event):
    """The trainer leaves: `done` (result.json is there), `stopped` (asked to; it can continue) or `failed`."""

    type: Literal["end"] = "end"
    outcome: Literal["done", "stopped", "failed"]
    step: int
    code: str = ""
    message: str = ""


Event = Annotated[Stage | Progress | Attempt | Step | Validation | Checkpoint | Warn | End, Field(discriminator="type")]
_adapter: TypeAdapter[Event] = TypeAdapter(Event)


def append(path: Path, event: Event) -> None:
    """Add one event. A single O_APPEND write, so lines of several writers never mix.

    A line that an earlier writer left torn (killed, or the disk was full) is closed first, so it costs no other.
    """
    line = event.model_dump_json().encode() + b"\n"
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            line = b"\n" + line
        if os.write(fd, line) != len(line):
            raise OSError(f"{path}: the disk took only a part of an event; is it full?")
    finally:
        os.close(fd)


class Line(NamedTuple):
    """One whole line: `end` is the offset after it, which is also where a reader continues."""

    end: int
    text: str


def lines(path: Path, offset: int = 0) -> Iterator[Line]:
    """The whole lines from byte `offset` on; a last line without its newline is left for the next call."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            offset += len(raw)
            yield Line(offset, raw[:-1].decode(errors="replace"))


def parse(text: str) -> Event:
    """One event from its line. Raises pydantic's `ValidationError`."""
    return _adapter.validate_json(text)


def read(path: Path, offset: int = 0) -> Iterator[Event]:
    """The events from byte `offset` on. A torn line (of a trainer killed while writing) is passed over."""
    for line in lines(path, offset):
        try:
            yield parse(line.text)
        except ValueError:
            continue
