"""What evaluation leaves on disk: one fine-tuning, and the outcome of a task over settings and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from pydantic import BaseModel, ConfigDict
from typing_extensions import Self

from etd_ds.evaluate import tasks
from etd_ds.evaluate.metrics import Scores


class Trial(BaseModel):
    """One fine-tuning as it stands on disk."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float
    epochs: int
    seed: int
    scores: Scores
    steps: int
    first_loss: float
    last_loss: float
    seconds: float


class Spread(BaseModel):
    """One metric over the seeds, in per cent; the deviation is that of the sample, 0 for a single seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    deviation: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: tuple[float, ...]) -> Self:
        """Of one value or more."""
        return cls(mean=mean(values), deviation=stdev(values) if len(values) > 1 else 0.0, values=values)


class Summary(BaseModel):
    """The outcome of a task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    model: str
    model_sha256: str
    examples_sha256: str
    train_examples: int
    scaled_down: tuple[str, ...]
    """What differs from the paper's protocol; empty when nothing does."""
    learning_rate: float
    epochs: int
    decided_on: str
    reported: str
    seeds: tuple[int, ...]
    scores: dict[str, dict[str, Spread]]
    """Evaluation -> metric, of the chosen setting."""
    floors: dict[str, Scores] | None
    trials: tuple[Trial, ...]
    version: str

    @property
    def headline(self) -> float:
        """The score that stands for the task: its first metric on the split that it reports."""
        return self.scores[self.reported][tasks.TASKS[self.task].metrics[0]].mean


def spreads(scores: Sequence[Scores]) -> dict[str, dict[str, Spread]]:
    """Mean and deviation of every metric over several fine-tunings."""
    return {
        name: {metric: Spread.of(tuple(one[name][metric] for one in scores)) for metric in metrics}
        for name, metrics in scores[0].items()
    }
