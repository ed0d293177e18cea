"""One student that learns: its engine, how far it has come, and what is said of it."""

from __future__ import annotations

import hashlib
import math
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from etd_ds.bert.encoder import Packed
from etd_ds.contract import events, spec
from etd_ds.distill import health
from etd_ds.distill.module import Distiller
from etd_ds.engine.checkpoint import Found, Progress
from etd_ds.engine.ranks import Ranks
from etd_ds.engine.runtime import Engine, Update
from etd_ds.engine.schedule import learning_rate
from etd_ds.losses import Segments, Taps, Totals


@dataclass
class Learner:
    """A student, its optimizer and its progress. `say` takes events (on rank 0), `save` is called on all ranks."""

    job: spec.JobSpec
    steps: int
    steps_per_epoch: float
    ranks: Ranks
    engine: Engine
    distiller: Distiller
    say: Callable[[events.Event], None]
    save: Callable[[Progress], None]
    progress: Progress = field(default_factory=Progress)
    _window: Window = field(init=False)
    _update: Update | None = None

    def __post_init__(self) -> None:
        self._window = Window(self.distiller.names)

    def restore(self, found: Found, guide: Callable[[Packed], Taps]) -> None:
        """Continue from a checkpoint, whatever number of ranks and ZeRO stage wrote it."""
        # Adam's moments exist once it has stepped: one step of rate 0 with gradient 0 moves nothing
        two = torch.zeros(2, dtype=torch.long, device=self.ranks.device)
        packed = Packed(two, two, two, Segments.packed([2]))
        self.engine.train()
        for _ in range(self.engine.micro_steps):
            loss, _ = self.engine(packed, guide(packed), Totals(2, 4))
            self.engine.backward(loss * 0)
            self.engine.update(0.0)
        self.engine.load(found.tensors(), found.progress.scalars)
        self.progress = found.progress

    @property
    def rate(self) -> float:
        """Learning rate of the update that comes next."""
        job = self.job
        return learning_rate(
            self.progress.step + 1, updates=self.steps, peak=job.learning_rate, warmup_ratio=job.warmup_ratio
        )

    def learn(self, packed: Packed, teacher: Taps, means: Totals, number: int) -> Tensor:
        """Micro batch `number` of the step: forward, backward, and the update if it was the last. Its terms."""
        if self.job.dropout:
            torch.manual_seed(_seed(self.job.seed, self.progress.step, self.ranks.rank, number))
        terms: Tensor
        loss, terms = self.engine(packed, teacher, means)
        self.engine.backward(loss)
        self._update = self.engine.update(self.rate)
        return terms

    def measure(self, packed: Packed, teacher: Taps, means: Totals) -> Tensor:
        """Terms of a held-out batch."""
        terms: Tensor = self.engine(packed, teacher, means)[1]
        return terms

    def account(self, terms: Sequence[float], *, tokens: int, slots: int, seconds: float) -> None:
        """The step is done: count it, look whether it makes sense, and say so now and then."""
        assert self._update is not None
        job, progress, loss, rate = self.job, self.progress, sum(terms), self.rate
        first_loss = loss if progress.first_loss is None else progress.first_loss
        health.check(loss, self._update, step=progress.step + 1, batch_size=job.batch_size, first_loss=first_loss)
        self.progress = progress.model_copy(
            update={
                "step": progress.step + 1,
                "tokens": progress.tokens + tokens,
                "seconds": progress.seconds + seconds,
                "first_loss": first_loss,
            }
        )
        self._window.add(terms, tokens, slots, seconds)
        if self.progress.step % job.log_every == 0 or self.progress.step == self.steps:
            self._say_step(rate, self._update)

    def measured(self, terms: Sequence[float]) -> None:
        """Keep and say the held-out loss of now. Raises `TrainingError` if it is not finite."""
        named = dict(zip(self.distiller.names, terms, strict=True))
        loss, step = sum(terms), self.progress.step
        health.check_held_out(loss, step=step)
        self.say(events.Validation(step=step, loss=loss, terms=named))
        for when, name in ((0, "validation_before"), (self.steps, "validation_after")):
            if step == when:
                self.progress = self.progress.model_copy(update={name: {"loss": loss, **named}})

    def _say_step(self, rate: float, update: Update) -> None:
        mean, norm = self._window.close(), update.grad_norm
        self.say(
            events.Step(
                step=self.progress.step,
                steps=self.steps,
                epoch=self.progress.step / self.steps_per_epoch,
                loss=sum(mean.terms.values()),
                terms=dict(mean.terms),
                learning_rate=rate,
                grad_norm=norm if norm is not None and math.isfinite(norm) else None,
                loss_scale=update.loss_scale,
                tokens=self.progress.tokens,
                tokens_per_second=mean.tokens_per_second,
                eta_seconds=mean.seconds_per_step * (self.steps - self.progress.step),
                padding_avoided=mean.padding_avoided,
                memory_bytes=_peak_memory(self.ranks.device),
            )
        )


@dataclass(frozen=True)
class Mean:
    """Means over the steps since the last progress event."""

    terms: Mapping[str, float]
    tokens_per_second: float
    seconds_per_step: float
    padding_avoided: float


class Window:
    """Sums since the last progress event."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._clear()

    def _clear(self) -> None:
        self._terms = [0.0] * len(self._names)
        self._steps = self._tokens = self._slots = 0
        self._seconds = 0.0

    def add(self, terms: Sequence[float], tokens: int, slots: int, seconds: float) -> None:
        """One step: `slots` are the tokens that padded sequences would take."""
        self._terms = [a + b for a, b in zip(self._terms, terms, strict=True)]
        self._steps += 1
        self._tokens += tokens
        self._slots += slots
        self._seconds += seconds

    def close(self) -> Mean:
        """The means; the window starts anew."""
        seconds = max(self._seconds, 1e-9)
        mean = Mean(
            {name: total / self._steps for name, total in zip(self._names, self._terms, strict=True)},
            self._tokens / seconds,
            seconds / self._steps,
            1 - self._tokens / max(self._slots, 1),
        )
        self._clear()
        return mean


def _seed(*key: int) -> int:
    """A seed of its own for every (run, step, rank, micro batch): no generator state has to be saved."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
