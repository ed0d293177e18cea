"""The loop that makes facts follow wishes: it claims queued jobs, and writes down what became of running ones."""

from __future__ import annotations

import logging
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from etd_ds.contract import launch, rundir
from service import status, tail, tracing
from service.executors import Executor
from service.queue import RENEWED, Outcome, Queue, Trainer
from service.reserve import Reserve, is_full
from service.settings import Settings
from service.storage import Storage
from service.store import Job, Store

log = logging.getLogger("etd_jobs")

_LOST = status.Seen(started=True, words="Its worker was not heard of any more.")


class Scheduler:
    """One thread of a server or of a worker. Several may work on one database, and on one worker's jobs.

    Each looks only after trainers whose lease it has. Without an executor it runs nothing, and only sees to it that
    what a lost worker had is queued again.
    """

    def __init__(self, settings: Settings, queue: Queue, executor: Executor | None) -> None:
        self._settings = settings
        self._queue = queue
        self._executor = executor
        self._reserve = Reserve(settings.data_dir)
        self._owner = uuid.uuid4().hex
        self._wake = threading.Event()
        self._over = threading.Event()
        self._draining = threading.Event()
        self._handing_back = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)
        self.left = threading.Event()
        """Set when the loop has ended: asked to, or after everything was handed back."""
        self.last_round = 0.0
        """When the last round ended well, for the health check."""

    def start(self, *, alone: bool) -> None:
        """Begin. `alone`: no other scheduler of this worker lives, so its jobs need not wait for their leases."""
        self.register()
        if self._executor is not None and alone:
            self._queue.take_over(self._settings.worker, self._owner, self._settings.lease)
        self._thread.start()

    def register(self) -> None:
        """Have the worker known. Raises `EtdError` when its name is another machine's."""
        settings = self._settings
        if self._executor is not None:
            count, lost_after = settings.slots, settings.lost_after
            self._queue.register(settings.worker, host=socket.gethostname(), count=count, lost_after=lost_after)

    def wake(self) -> None:
        """Look now instead of at the next tick."""
        self._wake.set()

    def drain(self) -> None:
        """Start no more jobs."""
        self._draining.set()

    def hand_back(self) -> None:
        """Start no more jobs, have those here write a checkpoint and leave for other workers, then end."""
        self._draining.set()
        self._handing_back.set()
        self._wake.set()

    def close(self) -> None:
        """End the loop. Running jobs go on; whoever starts next on this data folder looks after them."""
        self._over.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)
        if self._executor is not None:
            with suppress(SQLAlchemyError):  # then it falls silent instead
                self._queue.leave(self._settings.worker)

    def _loop(self) -> None:
        trouble: type[Exception] | None = None
        try:
            while not self._over.is_set():
                try:
                    self.round()
                    self._reserve.keep()
                    self.last_round, trouble = time.time(), None
                except (OSError, SQLAlchemyError) as error:  # a full disk, a database that is away: both may come back
                    if type(error) is not trouble:  # what lasts is said once, not at every tick
                        log.exception("the scheduler cannot work just now")
                    trouble = type(error)
                    if is_full(error):
                        self._reserve.give_back()
                self._wake.wait(self._settings.tick)
                self._wake.clear()
        finally:
            self.left.set()

    def round(self) -> None:
        """One look at everything."""
        settings, executor = self._settings, self._executor
        settings.server_lock.stat()  # whose data folder is away looks after nothing, so that others take over
        for trainer in self._queue.lost(self._owner, settings.lease):
            self._settle(trainer, [self._seen(job, _LOST) for job in trainer.jobs])
        if executor is None:
            return
        since = time.time()
        draining = self._draining.is_set()
        trainers = self._queue.lease(settings.worker, self._owner, settings.lease, draining=draining)
        if trainers is None:
            self.register()
            return
        for trainer in trainers:
            with self._bearing(trainer):
                self._reconcile(executor, trainer, since)
        while not self._draining.is_set():
            since = time.time()
            new = self._queue.claim(settings.worker, self._owner, settings.lease, together=settings.together)
            if new is None:
                break
            for job in new.jobs:
                log.info("%s starts, attempt %s", job.id, job.attempt, extra={"job": job.id})
            with self._bearing(new):
                self._start(executor, new, since)
        if self._handing_back.is_set() and not trainers:
            self._over.set()

    def _start(self, executor: Executor, trainer: Trainer, since: float) -> None:
        """Start it, unless the lease of `since` is over: another scheduler may have it by now."""
        if time.time() - since < self._settings.lease * RENEWED:
            for other in trainer.jobs[1:]:
                words = f"{launch.ATTEMPT}{other.attempt} together with {trainer.id}, whose log has what is printed"
                its = rundir.RunDir(self._settings.runs / other.id).log
                if tail.last_lines(its, 1) != [words]:
                    with its.open("a") as out:
                        out.write(words + "\n")
            ids = [job.id for job in trainer.jobs]
            executor.start(ids, trainer.attempt, self._queue.held(trainer.id), trainer.jobs[0].priority)

    @contextmanager
    def _bearing(self, trainer: Trainer) -> Iterator[None]:
        """One trainer's trouble holds up no other; one whose run folders are gone or damaged has failed."""
        try:
            yield
        except (OSError, ValueError) as error:
            if is_full(error):
                raise
            log.exception("%s cannot be looked after", trainer.id, extra={"job": trainer.id})
            gone = not all((self._settings.runs / job.id).is_dir() for job in trainer.jobs)
            gone = gone and self._settings.server_lock.exists()  # else the whole data folder is away
            if gone or isinstance(error, ValueError):
                words = "Its run folder is gone." if gone else "It cannot be run; the server's log says why."
                self._settle(trainer, [status.Seen(refused=True, words=words)] * len(trainer.jobs))

    def _reconcile(self, executor: Executor, trainer: Trainer, since: float) -> None:
        """Have the executor do what is asked, and write down an end. `since`: when the lease was renewed."""
        executor.hold(trainer.id, trainer.attempt, since)
        found = executor.look(trainer.id, trainer.attempt)
        told = self._handing_back.is_set() or any(job.wish in ("cancel", "pause") for job in trainer.jobs)
        if told and found.started and found.exit_code is None:
            # it was us who had it leave or killed: that costs no job a try
            found = found._replace(exit_code=launch.EXIT_STOPPED)
        seen = [self._seen(job, found) for job in trainer.jobs]
        actions = [self._verdict(trainer, job, one).action for job, one in zip(trainer.jobs, seen, strict=True)]
        if found.alive:
            if "stop" in actions or self._handing_back.is_set():
                executor.stop(trainer.id, trainer.attempt)
        elif set(actions) == {"start"} and not self._handing_back.is_set():
            self._start(executor, trainer, since)
        else:
            if not found.started:  # a scheduler that is late must not start it after all
                executor.stop(trainer.id, trainer.attempt)
            self._settle(trainer, seen)

    def _seen(self, job: Job, found: status.Seen) -> status.Seen:
        """What is seen of the trainer, as it is for one of its jobs."""
        return found._replace(result=rundir.RunDir(self._settings.runs / job.id).result.exists())

    def _verdict(self, trainer: Trainer, job: Job, seen: status.Seen) -> status.Verdict:
        return status.decide(
            job.status,
            job.wish,
            seen,
            tries_left=job.retries < self._settings.max_retries,
            retry_killed=self._settings.retry_killed,
            in_company=len(trainer.jobs) > 1,
        )

    def _settle(self, trainer: Trainer, seen: Sequence[status.Seen]) -> None:
        """Write down what became of all jobs of a trainer that does not live."""
        outcomes = []
        for job, one in zip(trainer.jobs, seen, strict=True):
            verdict = self._verdict(trainer, job, one)
            if verdict.action == "start":  # it never began, and now it will not
                verdict = status.Verdict("queued", "", "stopped")
            verdict, message = self._explain(job, verdict, one.words)
            wait = self._settings.backoff * 2**job.retries if verdict.code not in status.NO_FAULT else 0.0
            outcomes.append(Outcome(verdict, message, wait))
        if self._queue.settle(trainer, self._owner, outcomes):
            for job, outcome in zip(trainer.jobs, outcomes, strict=True):
                became = outcome.verdict
                log.info("%s is %s %s", job.id, became.status, became.code, extra={"job": job.id})
                now, failed = time.time(), became.code if became.status == "failed" else ""
                began = tail.began(rundir.RunDir(self._settings.runs / job.id).events) or now
                tracing.stage(job.id, "attempt", began, now, error=failed, number=job.attempt, became=became.status)

    def _explain(self, job: Job, verdict: status.Verdict, words: str) -> tuple[status.Verdict, str]:
        """A failure's code and message: the trainer's own words, if it was able to leave any."""
        if verdict.status != "failed":
            return verdict, ""
        if verdict.code == "refused":
            return verdict, words or status.MESSAGES["refused"]
        run = rundir.RunDir(self._settings.runs / job.id)
        if any("No space left on device" in line for line in _last_words(run.log)):
            verdict = verdict._replace(code="disk_full")
        elif (
            verdict.code in ("bad_input", "trainer_crashed")
            and (end := tail.last_end(run.events))
            and end.outcome == "failed"
            and end.message
        ):
            return verdict._replace(code=end.code or verdict.code), tail.clean(end.message)
        return verdict, " ".join(filter(None, (status.MESSAGES[verdict.code], words)))


def _last_words(log: Path) -> list[str]:
    """The end of what the newest attempt printed."""
    lines = tail.last_lines(log, 200)
    begins = [number for number, line in enumerate(lines) if line.startswith(launch.ATTEMPT)]
    return lines[begins[-1] :] if begins else lines


def sweep(settings: Settings, store: Store, storage: Storage) -> None:
    """Remove run folders that no job has: of a server that died before it wrote the job down.

    Only for whoever has the data folder for itself: another server may be extracting. A database without any job is
    perhaps not the one that belongs to folders that were trained in.
    """
    known = store.ids()
    unknown = [folder for folder in settings.runs.iterdir() if folder.name not in known]
    if not known and any(rundir.RunDir(folder).log.exists() for folder in unknown):
        log.error("the database knows no job, and %s has trained ones; is it theirs? None is removed", settings.runs)
        unknown = []
    for folder in unknown:
        log.warning("removing %s, which no job has", folder.name)
    for folder in (*settings.incoming.iterdir(), *unknown):
        storage.remove(folder)
