"""The work of a reproduction: extract, distill and score whatever is missing, several commands at a time."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch

from etd_ds.contract import errors, launch, spec
from etd_ds.evaluate import door, tasks
from etd_ds.stages import progress
from etd_ds.stages.export import revision
from etd_ds.stages.extract import check, extract
from etd_ds.stages.reproduction import TEACHER, Member, Reproduction, keep, lay, members

_NICE_END = 300.0  # seconds that a trainer has for its last step and checkpoint, with many students on a busy machine


Work = Callable[[int], str | None]
"""What to do in a slot of that number; returns what failed, as text."""


@dataclass
class Workshop:
    """Where and how: `slots` commands at a time, up to `together` students to one trainer and its teacher."""

    out: Path
    cache: Path
    slots: int = 1
    together: int = 4
    tasks: tuple[str, ...] | None = None
    """Downstream tasks; none means the scale's."""
    data: Path | None = None
    """Where their files are, as `etd-ds evaluate --data`."""
    tell: Callable[[str], None] = print
    report: progress.Report | None = None
    _children: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: bool = False
    _free: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        for slot in range(self.slots):
            self._free.put(slot)

    def reproduce(self, asked: Reproduction) -> None:
        """All that is missing. Raises `TrainingError` at the end, naming what failed; the rest is done by then."""
        cast = members(self.out, asked)
        jobs = [asked.job(member) for member in cast]
        for member, job in zip(cast, jobs, strict=True):
            check(job, self.cache)
            if member.run.read_result() is None:
                self._check_room(job)
        at = asked.recipes.scales[asked.scale]
        chosen = [task.name for task in tasks.named(list(at.tasks if self.tasks is None else self.tasks))]
        for name in chosen:
            door.open_task(tasks.TASKS[name], self.data)  # a file that lacks is said before hours of training
        keep(self.out, asked)
        for member, job in zip(cast, jobs, strict=True):
            lay(member.run, job)
        for number, member in enumerate(cast, 1):
            if not member.run.plan.exists():
                self.tell(f"extract {number}/{len(cast)}: {_name([member])}")
                extract(member.run, cache=self.cache, report=self.report)
        torch.cuda.empty_cache()  # the trainers need what extraction took; without a GPU this does nothing
        failed = self._all([(f"distill {_name(group)}", partial(self._train, group)) for group in self._groups(cast)])
        argv = [*at.evaluate.argv(), *(["--data", str(self.data)] if self.data else [])]
        if chosen:
            failed += self._all(list(self._scoring([*argv, "--task", *chosen], cast)))
        if curves := at.score_curves:
            scored = [name for name in chosen if tasks.TASKS[name] in tasks.named(list(curves.tasks))]
            drawn = [member for member in cast if member.row.name in asked.recipes.scored_over_training()]
            if scored:
                failed += self._all(list(self._scoring_steps([*argv, "--task", *scored], drawn, curves.steps)))
        if failed:
            raise errors.TrainingError(
                f"{len(failed)} of the commands failed: {'; '.join(failed)}. Mend the cause and start the same command "
                "again; what is done stays done"
            )

    # ---------------------------------------------------------------- training

    def _groups(self, cast: Sequence[Member]) -> list[list[Member]]:
        """Unfinished runs that may share a teacher and every batch: those that differ in nothing else, and stand at
        the same step. (A trainer begins at the newest step that all its students have.)
        """
        alike: dict[tuple[str, frozenset[str]], list[Member]] = {}
        for member in cast:
            if member.run.read_result() is None:
                saved = frozenset(path.name for path in member.run.checkpoints.glob("step-*"))
                alike.setdefault((member.run.read_job().alike(), saved), []).append(member)
        return [
            same[first : first + self.together]
            for same in alike.values()
            for first in range(0, len(same), self.together)
        ]

    def _train(self, group: Sequence[Member], slot: int) -> str | None:
        first, *others = (member.run for member in group)
        job = first.read_job()
        devices = self._devices(slot, job.gpus)
        argv = launch.train_argv(first, job, cache=self.cache, devices=devices or None, together=others)
        code = self._run(argv, first.log, ranks=job.gpus)
        if code == launch.EXIT_DONE and all(member.run.read_result() for member in group):
            return None
        return f"distilling {_name(group)} (exit code {code}, {first.log})"

    # ---------------------------------------------------------------- scoring

    def _scoring(self, argv: Sequence[str], cast: Sequence[Member]) -> Iterator[tuple[str, Work]]:
        """Every finished student and the teacher, fine-tuned by `etd-ds evaluate` with these arguments."""
        for member in cast:
            if member.run.read_result() is not None:
                name = f"score {_name([member])}"
                yield name, partial(self._score, str(member.run.student), member.scores, [*argv, *_seed(member)])
        teacher = cast[0].run.read_job().teacher
        folder = self.out / "scores" / TEACHER
        yield "score the teacher", partial(self._score, teacher, folder, [*argv, *_seed(cast[0])])

    def _scoring_steps(
        self, argv: Sequence[str], cast: Sequence[Member], steps: Sequence[int]
    ) -> Iterator[tuple[str, Work]]:
        """The same of finished students as they were after so many steps."""
        for member in cast:
            if member.run.read_result() is not None:
                for step in steps:
                    more = [*argv, *_seed(member)]
                    yield f"score {_name([member])}, step {step}", partial(self._score_step, member, step, more)

    def _score_step(self, member: Member, step: int, more: Sequence[str], slot: int) -> str | None:
        model = member.run.init
        if step:
            try:
                revision(member.run, step)
            except errors.RunFolderError as error:
                return f"scoring {_name([member])}, step {step}: {error}"
            model = member.run.revisions / f"step-{step}"
        return self._score(str(model), member.scores_at(step), more, slot)

    def _score(self, model: str, out: Path, more: Sequence[str], slot: int) -> str | None:
        out.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "etd_ds.cli", "evaluate", "--model", model, "--out", str(out)]
        argv += ["--cache", str(self.cache), "--quiet", *more]
        device = self._devices(slot, 1)
        one = {"CUDA_VISIBLE_DEVICES": str(device[0])} if device else {}
        code = self._run(argv, out / "log.txt", ranks=1, more=one)
        return None if code == 0 else f"scoring {model} (exit code {code}, {out / 'log.txt'})"

    # ---------------------------------------------------------------- GPUs

    def _devices(self, slot: int, count: int) -> list[int]:
        """So many GPUs of a slot's own; none where there are none."""
        gpus = _gpus()
        first = slot * len(gpus) // self.slots
        return gpus[first : first + count]

    def _check_room(self, job: spec.JobSpec) -> None:
        """Raise `EtdError` for a run that no slot can take."""
        if job.nodes > 1:
            raise errors.EtdError(f"nodes: wanted 1, as all is run on this machine, got {job.nodes}", field="nodes")
        if (gpus := _gpus()) and job.gpus > (share := len(gpus) // self.slots):
            raise errors.HardwareError(
                f"gpus: a run wants {job.gpus}, each of {self.slots} slots has {share} of the {len(gpus)} GPUs here; "
                "give fewer --slots, or fewer gpus in recipes of your own",
                field="gpus",
                wanted=share,
                got=job.gpus,
            )

    # ---------------------------------------------------------------- commands

    def _all(self, work: Sequence[tuple[str, Work]]) -> list[str]:
        """Do everything, `slots` at a time; what failed, as text. Ended from outside, the children end first."""
        failed: list[str] = []
        with ThreadPoolExecutor(self.slots) as pool:
            waiting: dict[Future[str | None], str] = {}
            try:
                for name, do in work:
                    waiting[pool.submit(self._in_a_slot, name, do)] = name
                for done in as_completed(waiting):
                    if (failure := done.result()) is not None:
                        self.tell(f"FAILED: {failure}")
                        failed.append(failure)
            except BaseException:
                self._end(waiting)
                raise
        return failed

    def _in_a_slot(self, name: str, do: Work) -> str | None:
        slot = self._free.get()
        try:
            self.tell(name)
            return do(slot)
        finally:
            self._free.put(slot)

    def _run(self, argv: list[str], log: Path, *, ranks: int, more: Mapping[str, str] = MappingProxyType({})) -> int:
        threads = max(1, len(os.sched_getaffinity(0)) // (self.slots * ranks))
        # children find this package from wherever the command runs: a recipe's relative paths mean that folder
        path = os.pathsep.join(filter(None, [str(launch.REPOSITORY), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": path}
        env |= {**launch.train_env(cpu=not _gpus(), threads_per_rank=threads), **more}
        with log.open("ab") as out:
            with self._lock:
                if self._ended:
                    return -signal.SIGTERM
                # a process group of its own, so that a launcher and its ranks can be told to end together
                child = subprocess.Popen(argv, stdout=out, stderr=out, env=env, start_new_session=True)
                self._children.add(child)
            try:
                return child.wait()
            finally:
                with self._lock:
                    self._children.discard(child)

    def _end(self, waiting: dict[Future[str | None], str]) -> None:
        for future in waiting:
            future.cancel()
        with self._lock:
            self._ended = True
            children = list(self._children)
        for sent in (signal.SIGTERM, signal.SIGKILL):
            for child in children:
                if child.poll() is None:
                    # it may end, and be waited for by its own thread, in between
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child.pid, sent)
            for child in children:
                try:
                    child.wait(_NICE_END)
                except subprocess.TimeoutExpired:
                    continue


def _name(group: Sequence[Member]) -> str:
    return f"{', '.join(member.row.name for member in group)}, seed {group[0].seed}"


def _seed(member: Member) -> list[str]:
    return ["--seeds", str(member.seed)]


def _gpus() -> list[int]:
    """Numbers of the GPUs that are this command's: the launcher takes them from 0 on if it is told of none."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not count or named is None:
        return list(range(count))
    try:
        return [int(number) for number in named.split(",")][:count]
    except ValueError:
        raise errors.HardwareError(
            f"CUDA_VISIBLE_DEVICES: wanted numbers, which are all that the deepspeed launcher knows, got {named}"
        ) from None
