"""One run folder in a trainer: its spec, its claim on the folder, its events, its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from etd_ds.contract import events, rundir
from etd_ds.engine import checkpoint
from etd_ds.stages.attempt import Attempt


class Watcher(Protocol):
    """Shows events to a person, somewhere."""

    def show(self, event: events.Event) -> None: ...
    def close(self) -> None: ...


class Seat:
    """`attempt` is there on rank 0 alone; the other ranks write nothing."""

    def __init__(self, run: rundir.RunDir, attempt: Attempt | None) -> None:
        self.run, self.attempt = run, attempt
        self.job = run.read_job()
        self.watchers: list[Watcher] = []

    def say(self, event: events.Event) -> None:
        """Append an event, and show it to whoever watches."""
        if self.attempt is not None:
            self.attempt.say(event)
            for watcher in self.watchers:
                watcher.show(event)

    def warn(self, message: str) -> None:
        """Say what a person should know."""
        self.say(events.Warn(message=message))

    def whole_steps(self) -> list[int]:
        """Steps of the checkpoints that are whole, newest first; leftovers of killed attempts are cleared away."""
        checkpoint.clear_leftovers(self.run.checkpoints)
        return [found.progress.step for found in checkpoint.whole(self.run.checkpoints, self.warn)]

    def open(self, step: int) -> checkpoint.Found:
        """The checkpoint of a step that `whole_steps` named."""
        return checkpoint.open_whole(self.run.checkpoints, step)

    def write(self, progress: checkpoint.Progress, state: Mapping[str, Tensor], scalars: Mapping[str, float]) -> None:
        """Publish a checkpoint and say so (rank 0)."""
        assert self.attempt is not None
        whole = progress.model_copy(update={"scalars": dict(scalars)})
        keep, every = self.job.keep_checkpoints, self.job.checkpoint_every
        name = checkpoint.save(self.run.checkpoints, whole, state, keep=keep, every=every, guard=self.attempt.guard)
        self.say(events.Checkpoint(step=progress.step, name=name))
