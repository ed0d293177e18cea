"""The trainer's stages on run folders: data, distill, export. Each is skipped if its output is there."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from etd_ds import data
from etd_ds.bert import checkpoint as bert_checkpoint
from etd_ds.contract import errors, events, rundir, shape, spec
from etd_ds.data import tokenize
from etd_ds.data.corpus import Corpus
from etd_ds.data.stream import Ahead, Stream
from etd_ds.distill import board
from etd_ds.distill.board import Board
from etd_ds.distill.display import Display
from etd_ds.distill.learner import Learner
from etd_ds.distill.loop import Loop, Rhythm
from etd_ds.distill.module import Distiller, Guide
from etd_ds.distill.stopping import Stop
from etd_ds.engine import adam, checkpoint, config, runtime
from etd_ds.engine.ranks import Ranks, hardware, leave
from etd_ds.engine.runtime import Engine
from etd_ds.engine.sharded import sharded
from etd_ds.losses import OBJECTIVES, Objective
from etd_ds.stages import calibrate, folder
from etd_ds.stages.export import export
from etd_ds.stages.seat import Seat

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """How runs are computed on this machine."""

    job: spec.JobSpec
    """Of the first run; all agree in what is not `spec.OWN`."""
    ds_config: dict[str, Any]
    precision: config.Dtype
    micro: int
    compiler: bool
    """Whether DeepSpeed's own Adams can be had here."""


def check(runs: Sequence[rundir.RunDir], *, ds_config: Path, world_size: int) -> Settings:
    """Everything that can be wrong with folders, config and machine, found before any work. Raises `EtdError`."""
    job = runs[0].read_job()
    for run in runs:
        if not (run.init / "config.json").is_file():
            raise errors.RunFolderError(
                f"{run.init}: wanted the extracted student, got no config.json; extract it first"
            )
        other = run.read_job()
        for name in spec.JobSpec.model_fields.keys() - spec.OWN:
            if getattr(other, name) != getattr(job, name):
                raise errors.EtdError(
                    f"{name}: runs trained together must agree in it; {runs[0].root} has {getattr(job, name)!r}, "
                    f"{run.root} has {getattr(other, name)!r}",
                    field=name,
                )
        if other.tensorboard:
            board.check()
    machine, content = hardware(), config.read(ds_config)
    runtime.check(content)
    config.check_compile(job, content, machine)
    return Settings(
        job=job,
        ds_config=content,
        precision=config.precision(job.precision, content, machine),
        micro=config.micro_batch(job, world_size=world_size, device=machine.device),
        compiler=machine.compiler,
    )


class Trainer:
    """Carries one rank through the stages of its runs. Started again on the same folders, it continues."""

    def __init__(self, seats: Sequence[Seat], settings: Settings, *, cache: Path, ranks: Ranks, stop: Stop) -> None:
        self.seats, self.settings, self.cache, self.ranks, self.stop = seats, settings, cache, ranks, stop
        self.job = settings.job

    def train(self) -> None:
        """All that is left to do. Raises `Stopped` or `EtdError`."""
        self.ranks.lead("students", self._students)
        corpus = self._data()
        steps = self.job.total_steps(len(corpus.train))
        whole: list[list[int]] = self.ranks.lead("checkpoints", lambda: [seat.whole_steps() for seat in self.seats])
        left = {seat: found for seat, found in zip(self.seats, whole, strict=True) if steps not in found}
        for seat in self.seats:
            if seat not in left:
                seat.say(events.Stage(stage="distill", state="skipped"))
        if left:
            # several students go on from the newest step that all have
            common = max(set.intersection(*(set(found) for found in left.values())), default=0)
            self._timed(list(left), "distill", lambda: self._distill(list(left), corpus, steps, common))
        leave(self.ranks)
        self.stop.at_once = True
        for seat in self.seats:
            if seat.attempt is not None:
                result = export(seat.run, seat.open(steps), seat.attempt)
                seat.say(events.End(outcome="done", step=result.steps))

    # ---------------------------------------------------------------- stages

    @functools.cached_property
    def _teacher(self) -> bert_checkpoint.Teacher:
        """The weights that the students were cut from: a hub id is asked for by the commit that extraction found."""
        runs = [seat.run for seat in self.seats if seat.run.plan.exists()]  # a folder made by hand has no plan
        plans = [run.read_plan() for run in runs]
        reference = plans[0].teacher_reference if plans else None
        teacher = bert_checkpoint.resolve(reference or self.job.teacher, self.cache)
        for run, plan in zip(runs, plans, strict=True):
            if plan.teacher_sha256 != teacher.sha256:
                raise errors.RunFolderError(
                    f"{run.root}: wanted the teacher that its student was cut from, sha256 {plan.teacher_sha256}; "
                    f"{teacher.reference} now has {teacher.sha256}; extract the student again"
                )
        return teacher

    def _students(self) -> None:
        """Each student must be one of the teacher: cut from it, of the sizes that its spec says, its tokenizer too."""
        tokens = tokenize.digest(tokenize.open_tokenizer(self._teacher.folder))
        for seat in self.seats:
            init = seat.run.init
            _cut_from(init, self._teacher)
            wanted = shape.student(seat.job, self._teacher.shape).model_dump()
            got = shape.from_config(bert_checkpoint.read_config(init)).model_dump()
            if other := [name for name in wanted if got[name] != wanted[name]]:
                sizes = [", ".join(f"{name} {shown[name]}" for name in other) for shown in (wanted, got)]
                raise errors.RunFolderError(
                    f"{init}: wanted a student with {sizes[0]}, as spec and teacher ask, got {sizes[1]}; "
                    "extract it again, or take the teacher that it belongs to",
                    wanted={name: wanted[name] for name in other},
                    got={name: got[name] for name in other},
                )
            if tokenize.digest(tokenize.open_tokenizer(init)) != tokens:
                raise errors.RunFolderError(
                    f"{init}: wanted the tokenizer of the teacher {self._teacher.reference}, got another one; "
                    "extract the student again, or take the teacher that it belongs to"
                )

    def _data(self) -> Corpus:
        """Rank 0 makes the corpus if the cache has it not; then all open it."""

        def prepare() -> Corpus:
            return data.prepare(
                self.job.corpus,
                tokenizer=self._teacher.folder,
                seq_length=self.job.seq_length,
                layout=self.job.layout,
                validation_sequences=self.job.validation_sequences,
                cache=self.cache,
                seed=self.job.seed,
                progress=self.ranks.first,
            )

        made: list[Corpus] = []

        def make() -> None:
            made.append(prepare())
            _check_corpus(made[0], self.job.corpus, self._teacher)

        self.ranks.lead("data", lambda: self._timed(self.seats, "data", make))
        corpus = made[0] if made else prepare()
        # a rank with another cache, or a slow disk, may take longer than a collective would wait
        self.ranks.meet("corpus")
        return corpus

    def _distill(self, seats: Sequence[Seat], corpus: Corpus, steps: int, common: int) -> None:
        if common:
            for seat in seats:
                _same_corpus(seat, common, corpus)
        loop = self._loop(seats, corpus, steps)
        for seat, learner in zip(seats, loop.learners, strict=True):
            if common:
                learner.restore(seat.open(common), loop.guide)
            seat.say(
                events.Attempt(
                    step=common,
                    steps=steps,
                    world_size=self.ranks.world_size,
                    precision=self.settings.precision,
                    device=_device_name(self.ranks.device),
                    sequences=len(corpus.train),
                )
            )
        self.stop.step, self.stop.at_once = common, False
        if self.ranks.first:
            seats[0].watchers.append(Display(steps, common))
            for seat in seats:
                if seat.job.tensorboard:
                    seat.watchers.append(Board(seat.run.tensorboard, common))
        try:
            loop.run()
        finally:
            for seat in seats:
                while seat.watchers:
                    seat.watchers.pop().close()

    def _loop(self, seats: Sequence[Seat], corpus: Corpus, steps: int) -> Loop:
        job, ranks = self.job, self.ranks
        teacher = bert_checkpoint.load_encoder(self._teacher.folder, dtype=DTYPES[self.settings.precision])
        distillers = [self._distiller(seat, teacher.config) for seat in seats]
        if self.settings.compiler:
            adam.load(self.settings.ds_config)
        # the engines below are made by collectives, and one machine may take long to read its models
        ranks.meet("models")
        objectives = [distiller.objective for distiller in distillers]
        guide = Guide(teacher, *objectives, compiled=job.torch_compile)
        stream = Stream(
            corpus.train, batch_size=job.batch_size, seed=job.seed, rank=ranks.rank, world_size=ranks.world_size
        )
        return Loop(
            learners=[
                self._learner(number, seat, distiller, steps, corpus)
                for number, (seat, distiller) in enumerate(zip(seats, distillers, strict=True))
            ],
            rhythm=Rhythm(steps, job.checkpoint_every, job.validate_every),
            micro=self.settings.micro,
            seq_length=job.seq_length,
            pad_to=job.seq_length if job.tinybert_compat else None,
            ranks=ranks,
            guide=sharded(guide, self.settings.precision) if job.shard_teacher else guide.to(ranks.device),
            stream=Ahead(stream, pin_memory=ranks.device.type == "cuda"),
            validation=corpus.validation,
            stop=self.stop,
        )

    def _distiller(self, seat: Seat, teacher: Any) -> Distiller:
        student = bert_checkpoint.load_encoder(seat.run.init)
        layers = student.config.num_hidden_layers, teacher.num_hidden_layers
        objective: Objective = OBJECTIVES[seat.job.objective](*layers)
        return Distiller(
            student,
            objective,
            teacher_hidden=teacher.hidden_size,
            dropout=seat.job.dropout,
            seed=seat.job.seed,
            fitted=calibrate.read(seat.run),
            compiled=self.job.torch_compile,
        )

    def _learner(self, number: int, seat: Seat, distiller: Distiller, steps: int, corpus: Corpus) -> Learner:
        whole = config.complete(
            self.settings.ds_config,
            seat.job,
            precision=self.settings.precision,
            micro=self.settings.micro,
            world_size=self.ranks.world_size,
            compiler=self.settings.compiler,
        )
        engine = Engine(distiller, whole, self.ranks)

        def save(progress: checkpoint.Progress) -> None:
            state, scalars = engine.gather(), engine.scalars()
            self.ranks.lead(f"checkpoint {number} {progress.step}", lambda: seat.write(progress, state, scalars))

        return Learner(
            job=seat.job,
            steps=steps,
            steps_per_epoch=len(corpus.train) / seat.job.batch_size,
            ranks=self.ranks,
            engine=engine,
            distiller=distiller,
            say=seat.say,
            save=save,
            progress=checkpoint.Progress(corpus=corpus.manifest.key),
        )

    def _timed(self, seats: Sequence[Seat], stage: Any, work: Callable[[], None]) -> None:
        """Do a stage's work and say when it began and how long it took."""
        started = time.monotonic()
        for seat in seats:
            seat.say(events.Stage(stage=stage, state="start"))
        work()
        for seat in seats:
            seat.say(events.Stage(stage=stage, state="done", detail=f"{time.monotonic() - started:.1f} s"))


def _cut_from(init: Path, teacher: bert_checkpoint.Teacher) -> None:
    """Refuse another teacher's student: two may have the same sizes, and a forgotten flag means the embedded one."""
    cut = folder.manifest(init).get("teacher", {})
    if cut and cut["sha256"] != teacher.sha256:
        raise errors.RunFolderError(
            f"teacher: wanted {cut['reference']}, from which {init} was cut (sha256 {cut['sha256']}), got "
            f"{teacher.reference} ({teacher.sha256}); give that teacher in a new run folder",
            field="teacher",
            wanted=cut["reference"],
            got=teacher.reference,
        )


def _check_corpus(corpus: Corpus, reference: str, teacher: bert_checkpoint.Teacher) -> None:
    if not len(corpus.train):
        raise errors.CorpusError("corpus: no training sequences are left; give more text", got=0)
    if corpus.manifest.options.layout == "pairs" and teacher.shape.token_types < 2:
        raise errors.CorpusError(
            f"corpus: {reference} was prepared in pairs, and the teacher {teacher.reference} has no second token type; "
            "prepare it with layout packed",
            wanted="packed",
            got="pairs",
        )


def _same_corpus(seat: Seat, step: int, corpus: Corpus) -> None:
    """The reference in a spec may mean another text by now, and a step number another place in it."""
    wanted, got = seat.open(step).progress.corpus, corpus.manifest.key
    if wanted not in (None, got):
        raise errors.CorpusError(
            f"corpus: {seat.job.corpus} changed since this run began ({seat.run.root}, step {step}: key "
            f"{wanted[:12]}, now {got[:12]}); bring the old one back, or begin another run",
            wanted=wanted,
            got=got,
        )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
