"""The training loop: every step over all ranks, what is said of it, when it is measured, saved, stopped."""

from __future__ import annotations

import faulthandler
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from etd_ds.bert.encoder import Packed
from etd_ds.contract import errors, events, spec
from etd_ds.data.batch import Batch, collate
from etd_ds.data.corpus import Row
from etd_ds.distill import inputs
from etd_ds.distill.module import Distiller, Guide
from etd_ds.distill.schedule import learning_rate
from etd_ds.distill.stopping import Stop, Stopped
from etd_ds.engine.checkpoint import Found, Progress
from etd_ds.engine.ranks import Ranks
from etd_ds.engine.runtime import Engine, Update
from etd_ds.losses import Segments, Totals

# A loss so many times the first one does not come back.
DIVERGED = 100.0
# The watchdog's patience: seconds for the first step, then at least so many, then in longest steps.
FIRST_STEP, LEAST, LONGEST_STEPS = 3600.0, 600.0, 20.0


class Rows(Protocol):
    """Rows of one split, by number."""

    @property
    def pad_id(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Row: ...


class Stream(Protocol):
    """This rank's batches of each step, and what the global batch holds."""

    def micro_batches(self, step: int, micro_batch_size: int) -> list[Batch]: ...
    def totals(self, step: int) -> tuple[int, int, int]: ...


@dataclass
class Loop:
    """One run's training. `say` takes events (on rank 0), `save` makes a checkpoint (on all ranks)."""

    job: spec.JobSpec
    steps: int
    steps_per_epoch: float
    micro: int
    ranks: Ranks
    engine: Engine
    distiller: Distiller
    guide: Guide
    stream: Stream
    validation: Rows
    say: Callable[[events.Event], None]
    save: Callable[[Progress], None]
    stop: Stop
    _window: _Window = field(init=False)

    def run(self, progress: Progress) -> Progress:
        """Train from `progress` to the last step. Raises `Stopped` (after a checkpoint) or `TrainingError`."""
        self._window = _Window(self.distiller.names)
        longest = 0.0
        if progress.step == 0:
            faulthandler.dump_traceback_later(FIRST_STEP, exit=True)
            progress = progress.model_copy(update={"validation_before": self._validate(0)})
        while progress.step < self.steps:
            # a rank that hangs (not in a collective, which has its own time-out) says where, and takes the job down
            patience = max(LEAST, LONGEST_STEPS * longest) if longest else FIRST_STEP
            faulthandler.dump_traceback_later(patience, exit=True)
            started = time.monotonic()
            progress, stopping = self._step(progress)
            longest = max(longest, time.monotonic() - started)
            last = progress.step == self.steps
            if last or progress.step % self.job.validate_every == 0:
                progress = self._measured(progress, last)
            if last or stopping or progress.step % self.job.checkpoint_every == 0:
                self.save(progress)
            if stopping:
                faulthandler.cancel_dump_traceback_later()
                raise Stopped(progress.step)
        faulthandler.cancel_dump_traceback_later()
        return progress

    def restore(self, found: Found) -> None:
        """Set the engine's state to a checkpoint's, whatever ranks and ZeRO stage wrote it."""
        # Adam's moments exist once it has stepped: one step of rate 0 with gradient 0 moves nothing
        two = torch.zeros(2, dtype=torch.long, device=self.ranks.device)
        packed = Packed(two, two, two, Segments.packed([2]))
        self.engine.train()
        for _ in range(self.engine.micro_steps):
            loss, _ = self.engine(packed, self.guide(packed), Totals(2, 4))
            self.engine.backward(loss * 0)
            self.engine.update(0.0)
        self.engine.load(found.tensors(), found.progress.scalars)

    # ---------------------------------------------------------------- one step

    def _step(self, progress: Progress) -> tuple[Progress, bool]:
        started, step = time.monotonic(), progress.step
        rate = learning_rate(
            step + 1, updates=self.steps, peak=self.job.learning_rate, warmup_ratio=self.job.warmup_ratio
        )
        batches = self.stream.micro_batches(step, self.micro)
        tokens, pairs, _ = self.stream.totals(step)
        packed = [inputs.pack(batch, pad_to=self._pad_to) for batch in batches]
        means = Totals(tokens, pairs) if self._pad_to is None else self._totals(packed)
        sums = torch.zeros(len(self.distiller.names), dtype=torch.float64, device=self.ranks.device)
        update: Update | None = None
        self.engine.train()
        for number, batch in enumerate(packed):
            batch = batch.to(self.ranks.device)
            if self.job.dropout:
                torch.manual_seed(_seed(self.job.seed, step, self.ranks.rank, number))
            loss, terms = self.engine(batch, self.guide(batch), means)
            self.engine.backward(loss)
            update = self.engine.update(rate)
            sums += terms
        assert update is not None
        *terms_now, wishes = self.ranks.sum(torch.cat([sums, sums.new_tensor([float(self.stop.asked)])])).tolist()
        seconds = time.monotonic() - started
        loss_now = sum(terms_now)
        self._check_health(step + 1, loss_now, update, progress.first_loss)
        progress = progress.model_copy(
            update={
                "step": step + 1,
                "tokens": progress.tokens + tokens,
                "seconds": progress.seconds + seconds,
                "first_loss": loss_now if progress.first_loss is None else progress.first_loss,
                "scalars": {},
            }
        )
        self._window.add(terms_now, tokens, seconds)
        if progress.step % self.job.log_every == 0 or progress.step == self.steps:
            self._say_step(progress, rate, update)
        return progress, wishes > 0

    @property
    def _pad_to(self) -> int | None:
        return self.job.seq_length if self.job.tinybert_compat else None

    def _totals(self, packed: Sequence[Packed]) -> Totals:
        mine = torch.tensor(inputs.totals(packed), dtype=torch.int64, device=self.ranks.device)
        return Totals(*(int(total) for total in self.ranks.sum(mine)))

    def _check_health(self, step: int, loss: float, update: Update, first_loss: float | None) -> None:
        first = (step - 1) * self.job.batch_size
        where = f"step {step} (sequences {first} to {first + self.job.batch_size - 1} in data order)"
        if not math.isfinite(loss):
            cure = "lower learning_rate" + ("" if update.loss_scale is None else ", or choose precision bf16 or fp32")
            raise errors.TrainingError(f"the loss became {loss} at {where}; {cure}", got=loss)
        bad_gradient = update.grad_norm is not None and not math.isfinite(update.grad_norm)
        if bad_gradient and update.loss_scale is None:
            raise errors.TrainingError(f"the gradient became {update.grad_norm} at {where}; lower learning_rate")
        if bad_gradient and update.loss_scale is not None and update.loss_scale <= 1:
            raise errors.TrainingError(
                f"fp16 gradients overflow at {where} even at loss scale 1; choose precision bf16 or fp32"
            )
        if first_loss and loss > DIVERGED * first_loss:
            raise errors.TrainingError(
                f"the loss grew from {first_loss:.4g} to {loss:.4g} at {where}: the run diverged; lower learning_rate "
                "or raise warmup_ratio",
                wanted=first_loss,
                got=loss,
            )

    def _say_step(self, progress: Progress, rate: float, update: Update) -> None:
        terms, tokens_per_second, seconds_per_step = self._window.close()
        norm = update.grad_norm
        self.say(
            events.Step(
                step=progress.step,
                steps=self.steps,
                epoch=progress.step / self.steps_per_epoch,
                loss=sum(terms.values()),
                terms=terms,
                learning_rate=rate,
                grad_norm=norm if norm is not None and math.isfinite(norm) else None,
                loss_scale=update.loss_scale,
                tokens=progress.tokens,
                tokens_per_second=tokens_per_second,
                eta_seconds=seconds_per_step * (self.steps - progress.step),
            )
        )

    # ---------------------------------------------------------------- held-out loss

    def _measured(self, progress: Progress, last: bool) -> Progress:
        found = self._validate(progress.step)
        return progress.model_copy(update={"validation_after": found}) if last else progress

    def _validate(self, step: int) -> dict[str, float] | None:
        """The loss over all held-out rows; every rank takes its share, and as many forward passes as the others."""
        if not len(self.validation):
            return None
        count = math.ceil(len(self.validation) / self.micro)
        mine = range(self.ranks.rank, count, self.ranks.world_size)
        own_totals = torch.zeros(2, dtype=torch.int64, device=self.ranks.device)
        for number in mine:
            own_totals += torch.tensor(inputs.totals([self._validation_batch(number)]), device=own_totals.device)
        means = Totals(*(int(total) for total in self.ranks.sum(own_totals)))
        sums = torch.zeros(len(self.distiller.names), dtype=torch.float64, device=self.ranks.device)
        self.engine.eval()
        with torch.no_grad():
            for number in range(self.ranks.rank, count + -count % self.ranks.world_size, self.ranks.world_size):
                batch = self._validation_batch(number % count).to(self.ranks.device)
                _, terms = self.engine(batch, self.guide(batch), means)
                sums += terms if number < count else 0
        terms = dict(zip(self.distiller.names, self.ranks.sum(sums).tolist(), strict=True))
        self.say(events.Validation(step=step, loss=sum(terms.values()), terms=terms))
        return {"loss": sum(terms.values()), **terms}

    def _validation_batch(self, number: int) -> Packed:
        first, end = number * self.micro, min((number + 1) * self.micro, len(self.validation))
        rows = [self.validation[i] for i in range(first, end)]
        return inputs.pack(collate(rows, self.validation.pad_id), pad_to=self._pad_to)


class _Window:
    """Sums since the last progress event."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._clear()

    def _clear(self) -> None:
        self._sums = [0.0] * len(self._names)
        self._steps, self._tokens, self._seconds = 0, 0, 0.0

    def add(self, terms: Sequence[float], tokens: int, seconds: float) -> None:
        self._sums = [a + b for a, b in zip(self._sums, terms, strict=True)]
        self._steps, self._tokens, self._seconds = self._steps + 1, self._tokens + tokens, self._seconds + seconds

    def close(self) -> tuple[dict[str, float], float, float]:
        """(mean terms, tokens per second, seconds per step); the window starts anew."""
        terms = {name: total / self._steps for name, total in zip(self._names, self._sums, strict=True)}
        seconds = max(self._seconds, 1e-9)
        result = terms, self._tokens / seconds, seconds / self._steps
        self._clear()
        return result


def _seed(*key: int) -> int:
    """A seed of its own for every (run, step, rank, micro batch): no generator state has to be saved."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
