"""The training loop: every step over all ranks and all students, when it is measured, saved, stopped."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from etd_ds.bert.encoder import Packed
from etd_ds.contract import errors
from etd_ds.data.batch import Batch, collate
from etd_ds.data.corpus import Row
from etd_ds.distill import inputs
from etd_ds.distill.learner import Learner
from etd_ds.distill.stopping import Stop, Stopped
from etd_ds.engine.ranks import Ranks
from etd_ds.losses import Taps, Totals

# The watchdog's patience: seconds for the first step, and for what follows a step; then at least so many for a step,
# then in longest steps.
FIRST_STEP, LEAST, LONGEST_STEPS = 3600.0, 600.0, 20.0


class Rows(Protocol):
    """Rows of one split, by number."""

    @property
    def pad_id(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Row: ...


class Stream(Protocol):
    """This rank's batches of each step, and what the global batch holds: (tokens, pairs, rows)."""

    def micro_batches(self, step: int, micro_batch_size: int) -> list[Batch]: ...
    def totals(self, step: int) -> tuple[int, int, int]: ...


@dataclass(frozen=True)
class Rhythm:
    """When things happen, in steps; the same for all students of a loop."""

    steps: int
    checkpoint_every: int
    validate_every: int


@dataclass
class Loop:
    """Students that share every batch and every teacher forward; each learns as it would alone."""

    learners: Sequence[Learner]
    rhythm: Rhythm
    micro: int
    seq_length: int
    pad_to: int | None
    """With `tinybert_compat`: the length that every sequence is padded to."""
    ranks: Ranks
    guide: Callable[[Packed], Taps]
    stream: Stream
    validation: Rows
    stop: Stop

    def run(self) -> None:
        """Train to the last step. Raises `Stopped` (after a checkpoint) or `TrainingError`."""
        step, longest = self.learners[0].progress.step, 0.0
        if step == 0:
            faulthandler.dump_traceback_later(FIRST_STEP, exit=True)
            with self._in_memory(step):
                self._validate()
        while step < self.rhythm.steps:
            # a rank that hangs (not in a collective, which has its own time-out) says where, and takes the job down
            patience = max(LEAST, LONGEST_STEPS * longest) if longest else FIRST_STEP
            faulthandler.dump_traceback_later(patience, exit=True)
            started = time.monotonic()
            with self._in_memory(step):
                stopping = self._step(step)
            step += 1
            longest = max(longest, time.monotonic() - started)
            # validation and saving may take far longer than a step
            faulthandler.dump_traceback_later(FIRST_STEP, exit=True)
            last = step == self.rhythm.steps
            if last or step % self.rhythm.validate_every == 0:
                self._validate()
            if last or stopping or step % self.rhythm.checkpoint_every == 0:
                for learner in self.learners:
                    learner.save(learner.progress)
                self.stop.step = step
            if stopping:
                faulthandler.cancel_dump_traceback_later()
                raise Stopped(step)
        faulthandler.cancel_dump_traceback_later()

    @contextlib.contextmanager
    def _in_memory(self, step: int) -> Iterator[None]:
        """Say what to change where a pass does not fit; before the first step that is one over held-out rows."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise errors.HardwareError(
                f"micro_batch_size: {self.micro} sequences of up to {self.seq_length} tokens in one pass did not "
                f"fit into the GPU's memory at step {step + 1}; give fewer ({str(error).splitlines()[0]})",
                field="micro_batch_size",
                got=self.micro,
            ) from error

    def _step(self, step: int) -> bool:
        """One optimizer step of every student; whether any rank was asked to stop."""
        started = time.monotonic()
        batches = self.stream.micro_batches(step, self.micro)
        tokens, pairs, _ = self.stream.totals(step)
        packed = [inputs.pack(batch, pad_to=self.pad_to) for batch in batches]
        means = Totals(tokens, pairs) if self.pad_to is None else self._totals(packed)
        sums = self._zeros()
        for learner in self.learners:
            learner.engine.train()
        for number, batch in enumerate(packed):
            batch = batch.to(self.ranks.device)
            taps = self.guide(batch)
            for learner, total in zip(self.learners, sums, strict=True):
                total += learner.learn(batch, taps, means, number)
        slots = self.seq_length * sum(len(batch.lengths) for batch in batches)
        # losses, padding and the wish to stop travel together
        flags = sums[0].new_tensor([float(slots), float(self.stop.asked)])
        *terms, all_slots, wishes = self.ranks.sum(torch.cat([*sums, flags])).tolist()
        seconds = time.monotonic() - started
        for learner in self.learners:
            own, terms = terms[: len(learner.distiller.names)], terms[len(learner.distiller.names) :]
            learner.account(own, tokens=tokens, slots=int(all_slots), seconds=seconds)
        return bool(wishes)

    def _totals(self, packed: Sequence[Packed]) -> Totals:
        mine = torch.tensor(inputs.totals(packed), dtype=torch.int64, device=self.ranks.device)
        return Totals(*(int(total) for total in self.ranks.sum(mine)))

    def _zeros(self) -> list[Tensor]:
        device = self.ranks.device
        return [torch.zeros(len(x.distiller.names), dtype=torch.float64, device=device) for x in self.learners]

    # ---------------------------------------------------------------- held-out loss

    def _validate(self) -> None:
        """The loss over all held-out rows; every rank takes its share, and as many forward passes as the others."""
        if not len(self.validation):
            return
        count = math.ceil(len(self.validation) / self.micro)
        shares = range(self.ranks.rank, count + -count % self.ranks.world_size, self.ranks.world_size)
        means = self._totals([self._validation_batch(number) for number in shares if number < count])
        sums = self._zeros()
        for learner in self.learners:
            learner.engine.eval()
        with torch.no_grad():
            for number in shares:
                batch = self._validation_batch(number % count).to(self.ranks.device)
                taps = self.guide(batch)
                for learner, total in zip(self.learners, sums, strict=True):
                    terms = learner.measure(batch, taps, means)
                    total += terms if number < count else 0
        for learner, total in zip(self.learners, sums, strict=True):
            learner.measured(self.ranks.sum(total).tolist())

    def _validation_batch(self, number: int) -> Packed:
        first, end = number * self.micro, min((number + 1) * self.micro, len(self.validation))
        rows = [self.validation[i] for i in range(first, end)]
        return inputs.pack(collate(rows, self.validation.pad_id), pad_to=self.pad_to)
