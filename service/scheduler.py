"""The loop that makes facts follow wishes: it claims queued jobs, and writes down what became of running ones."""

from __future__ import annotations

import logging
import shutil
import threading
import time
import uuid

from sqlalchemy.exc import SQLAlchemyError

from etd_ds.contract import rundir
from service import status, tail
from service.executors import Executor
from service.reserve import Reserve, is_full
from service.settings import Settings
from service.store import Job, Store

log = logging.getLogger("etd_jobs")


class Scheduler:
    """One thread of a server. Several may work on one database: each looks only after jobs whose lease it has."""

    def __init__(self, settings: Settings, store: Store, executor: Executor) -> None:
        self._settings = settings
        self._store = store
        self._executor = executor
        self._reserve = Reserve(settings.data_dir)
        self._owner = uuid.uuid4().hex
        self._wake = threading.Event()
        self._over = threading.Event()
        self._draining = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)
        self.last_round = 0.0
        """When the last round ended well, for the health check."""

    def start(self) -> None:
        self._store.set_slots(self._settings.slots)
        self._thread.start()

    def wake(self) -> None:
        """Look now instead of at the next tick."""
        self._wake.set()

    def drain(self) -> None:
        """Start no more jobs."""
        self._draining.set()

    def close(self) -> None:
        """End the loop. Running jobs go on; whoever starts next on this data folder looks after them."""
        self._over.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def _loop(self) -> None:
        while not self._over.is_set():
            try:
                self.round()
                self._reserve.keep()
                self.last_round = time.time()
            except (OSError, SQLAlchemyError) as error:  # a full disk, a database that is away: both may come back
                log.exception("the scheduler cannot work just now")
                if is_full(error):
                    self._reserve.give_back()
            self._wake.wait(self._settings.tick)
            self._wake.clear()

    def round(self) -> None:
        """One look at everything."""
        for job in self._store.lease(self._owner, self._settings.lease):
            self._reconcile(job)
        while not self._draining.is_set() and (new := self._store.claim(self._owner, self._settings.lease)):
            log.info("%s starts, attempt %s", new.id, new.attempt, extra={"job": new.id})
            self._executor.start(new.id, new.attempt, self._store.held(new.id), new.priority)

    def _reconcile(self, job: Job) -> None:
        settings = self._settings
        seen = self._executor.look(job.id, job.attempt)
        verdict = status.decide(
            job.status,
            job.wish,
            seen,
            tries_left=job.retries < settings.max_retries,
            retry_killed=settings.retry_killed,
        )
        if verdict.action == "start":
            self._executor.start(job.id, job.attempt, self._store.held(job.id), job.priority)
        elif verdict.action == "stop":
            self._executor.stop(job.id, job.attempt)
        if verdict.status == "running":
            return
        verdict, message = self._explain(job, verdict, seen.words)
        wait = settings.backoff * 2**job.retries if verdict.code != "stopped" else 0.0
        if self._store.settle(job, self._owner, verdict, message=message, wait=wait):
            log.info("%s is %s %s", job.id, verdict.status, verdict.code, extra={"job": job.id})

    def _explain(self, job: Job, verdict: status.Verdict, words: str) -> tuple[status.Verdict, str]:
        """A failure's code and message: the trainer's own words, if it was able to leave any."""
        if verdict.status != "failed":
            return verdict, ""
        if verdict.code == "refused":
            return verdict, words or status.MESSAGES["refused"]
        run = rundir.RunDir(self._settings.runs / job.id)
        if any("No space left on device" in line for line in tail.last_lines(run.log, 200)):
            verdict = verdict._replace(code="disk_full")
        elif (
            verdict.code in ("bad_input", "trainer_crashed")
            and (end := tail.last_end(run.events))
            and end.outcome == "failed"
            and end.message
        ):
            return verdict._replace(code=end.code or verdict.code), tail.clean(end.message)
        return verdict, " ".join(filter(None, (status.MESSAGES[verdict.code], words)))


def sweep(settings: Settings, store: Store) -> None:
    """Remove run folders that no job has: of a server that died before it wrote the job down.

    Only for whoever has the data folder for itself: another server may be extracting.
    """
    known = store.ids()
    left = [*settings.incoming.iterdir(), *(folder for folder in settings.runs.iterdir() if folder.name not in known)]
    for folder in left:
        log.warning("removing %s, which no job has", folder.name)
        shutil.rmtree(folder, ignore_errors=True)
