"""The trainer's stages on a run folder: data, distill, export. Each is skipped if its output is there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from etd_ds import data
from etd_ds.bert import checkpoint as bert_checkpoint
from etd_ds.contract import errors, events, rundir, spec
from etd_ds.data.corpus import Corpus
from etd_ds.data.stream import Ahead, Stream
from etd_ds.distill.display import Display
from etd_ds.distill.loop import Loop
from etd_ds.distill.module import Distiller, Guide
from etd_ds.distill.stopping import Stop
from etd_ds.engine import checkpoint, config
from etd_ds.engine.ranks import Ranks, hardware, leave
from etd_ds.engine.runtime import Engine
from etd_ds.losses import OBJECTIVES
from etd_ds.stages.attempt import Attempt
from etd_ds.stages.export import export

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """How this run is computed on this machine."""

    job: spec.JobSpec
    ds_config: dict[str, Any]
    precision: config.Dtype
    micro: int


def check(run: rundir.RunDir, *, ds_config: Path, world_size: int) -> Settings:
    """Everything that can be wrong with a folder, a config and this machine, found before any work."""
    job = run.read_job()
    if not (run.init / "config.json").is_file():
        raise errors.RunFolderError(f"{run.init}: wanted the extracted student, got no config.json; extract it first")
    machine, content = hardware(), config.read(ds_config)
    return Settings(
        job=job,
        ds_config=content,
        precision=config.precision(job.precision, content, machine),
        micro=config.micro_batch(job, world_size=world_size, device=machine.device),
    )


class Trainer:
    """Carries one rank through the stages of a run. Started again on the same folder, it continues."""

    def __init__(
        self, run: rundir.RunDir, *, ds_config: Path, cache: Path, ranks: Ranks, stop: Stop, attempt: Attempt | None
    ) -> None:
        self.run, self.cache, self.ranks, self.stop = run, cache, ranks, stop
        self.attempt = attempt
        self.display: Display | None = None
        self.settings = check(run, ds_config=ds_config, world_size=ranks.world_size)
        self.job = self.settings.job

    def train(self) -> rundir.Result | None:
        """All that is left to do; the result on rank 0, `None` elsewhere. Raises `Stopped` or `EtdError`."""
        corpus = self._data()
        steps = self.job.total_steps(len(corpus.train))
        found = self._find_checkpoint()
        if found is None or found.progress.step < steps:
            self._stage("distill", lambda: self._distill(corpus, steps, found))
            found = None
        leave()
        if self.attempt is None:
            return None
        self.stop.at_once = True
        found = found or checkpoint.find(self.run.checkpoints, self._warn)
        assert found is not None
        return export(self.run, found, self.attempt)

    # ---------------------------------------------------------------- stages

    def _data(self) -> Corpus:
        """Rank 0 makes the corpus if the cache has it not; then all open it."""

        def prepare() -> Corpus:
            teacher = bert_checkpoint.resolve(self.job.teacher, self.cache)
            return data.prepare(
                self.job.corpus,
                tokenizer=teacher.folder,
                seq_length=self.job.seq_length,
                validation_sequences=self.job.validation_sequences,
                cache=self.cache,
                seed=self.job.seed,
                progress=self.ranks.first,
            )

        made: list[Corpus] = []
        self.ranks.lead("data", lambda: self._stage("data", lambda: made.append(prepare())))
        corpus = made[0] if made else prepare()
        if not len(corpus.train):
            raise errors.CorpusError("corpus: no training sequences are left; give more text", got=0)
        return corpus

    def _find_checkpoint(self) -> checkpoint.Found | None:
        """Rank 0 chooses the newest whole checkpoint; all read that one."""

        def choose() -> str | None:
            checkpoint.clear_leftovers(self.run.checkpoints)
            found = checkpoint.find(self.run.checkpoints, self._warn)
            return None if found is None else found.path.name

        name = self.ranks.lead("checkpoint", choose)
        return None if name is None else checkpoint.open_whole(self.run.checkpoints / name)

    def _distill(self, corpus: Corpus, steps: int, found: checkpoint.Found | None) -> None:
        loop = self._loop(corpus, steps)
        progress = checkpoint.Progress()
        if found is not None:
            loop.restore(found)
            progress = found.progress
        self._say(
            events.Attempt(
                step=progress.step,
                steps=steps,
                world_size=self.ranks.world_size,
                precision=self.settings.precision,
                device=_device_name(self.ranks.device),
                sequences=len(corpus.train),
            )
        )
        self.stop.step, self.stop.at_once = progress.step, False
        if self.ranks.first:
            self.display = Display(steps, progress.step)
        try:
            loop.run(progress)
        finally:
            if self.display is not None:
                self.display.close()

    def _loop(self, corpus: Corpus, steps: int) -> Loop:
        job, ranks = self.job, self.ranks
        teacher = bert_checkpoint.load_encoder(
            bert_checkpoint.resolve(job.teacher, self.cache).folder, dtype=DTYPES[self.settings.precision]
        )
        student = bert_checkpoint.load_encoder(self.run.init)
        if student.config.num_attention_heads != teacher.config.num_attention_heads:
            raise errors.RunFolderError(
                f"{self.run.init}: wanted a student with the teacher's {teacher.config.num_attention_heads} heads, "
                f"got {student.config.num_attention_heads}"
            )
        objective = OBJECTIVES[job.objective](student.config.num_hidden_layers, teacher.config.num_hidden_layers)
        distiller = Distiller(
            student, objective, teacher_hidden=teacher.config.hidden_size, dropout=job.dropout, seed=job.seed
        )
        whole = config.complete(
            self.settings.ds_config,
            job,
            precision=self.settings.precision,
            micro=self.settings.micro,
            world_size=ranks.world_size,
            device=ranks.device.type,
        )
        engine = Engine(distiller, whole, ranks)
        stream = Stream(
            corpus.train, batch_size=job.batch_size, seed=job.seed, rank=ranks.rank, world_size=ranks.world_size
        )
        return Loop(
            job=job,
            steps=steps,
            steps_per_epoch=len(corpus.train) / job.batch_size,
            micro=self.settings.micro,
            ranks=ranks,
            engine=engine,
            distiller=distiller,
            guide=Guide(teacher, objective).to(ranks.device),
            stream=Ahead(stream, pin_memory=ranks.device.type == "cuda"),
            validation=corpus.validation,
            say=self._say,
            save=lambda progress: self._save(engine, progress),
            stop=self.stop,
        )

    def _save(self, engine: Engine, progress: checkpoint.Progress) -> None:
        """A checkpoint of all ranks' state, written by rank 0; the others wait for it."""
        state, scalars = engine.gather(), engine.scalars()

        def write() -> None:
            assert self.attempt is not None
            whole = progress.model_copy(update={"scalars": scalars})
            keep, folder = self.job.keep_checkpoints, self.run.checkpoints
            name = checkpoint.save(folder, whole, state, keep=keep, guard=self.attempt.guard)
            self._say(events.Checkpoint(step=progress.step, name=name))

        self.ranks.lead(f"checkpoint {progress.step}", write)

    # ---------------------------------------------------------------- saying

    def _stage(self, stage: Any, work: Callable[[], None]) -> None:
        started = time.monotonic()
        self._say(events.Stage(stage=stage, state="start"))
        work()
        self._say(events.Stage(stage=stage, state="done", detail=f"{time.monotonic() - started:.1f} s"))

    def _say(self, event: events.Event) -> None:
        if self.attempt is not None:
            self.attempt.say(event)
            if self.display is not None:
                self.display.show(event)

    def _warn(self, message: str) -> None:
        self._say(events.Warn(message=message))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
