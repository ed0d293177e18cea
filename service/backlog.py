"""Extractions that go on behind their answer: asked for so, too long to wait for, or left by a server that died."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

from sqlalchemy.exc import SQLAlchemyError

from etd_ds.contract import rundir
from service import tail
from service.extraction import Extractor
from service.extractions import Extractions
from service.problems import Problem
from service.settings import Settings
from service.store import Job, Store

_LOOK_SECONDS = 0.5

log = logging.getLogger("etd_jobs")


class _Begun:
    """An extraction that a request waits for. Whoever takes the lock first decides: answered in time, or behind."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.error: Exception | None = None
        self.behind = False


class Backlog:
    """Jobs that are `extracting` are looked after under a lease, as running ones are: no two servers do one at once."""

    def __init__(
        self, settings: Settings, store: Store, rows: Extractions, extractor: Extractor, queued: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._store = store
        self._rows = rows
        self._extractor = extractor
        self._queued = queued
        self._owner = uuid.uuid4().hex
        self._mine: dict[str, float] = {}
        """Jobs whose extraction is under way here, and when their leases have to be renewed."""
        self._last = ""
        """The tenant whose job was extracted last."""
        self._wake = threading.Event()
        self._over = threading.Event()
        self._draining = threading.Event()
        looks = ((self._next, self._wake), (self._keep, self._over))
        self._threads = [threading.Thread(target=self._loop, args=look, daemon=True) for look in looks]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """There is something new to extract."""
        self._wake.set()

    def drain(self) -> None:
        """Let nobody wait for an extraction any more."""
        self._draining.set()

    def close(self) -> None:
        """Leave what is not done to whoever comes next."""
        self._over.set()
        self._wake.set()
        try:
            self._rows.release(self._owner)
        except SQLAlchemyError:
            log.exception("extractions go on elsewhere only when their leases have ended")

    def extract(self, job: Job, run: rundir.RunDir, patience: float) -> Job:
        """Extract, for at most `patience` seconds, then write the job down: `queued`, or `extracting` and going on.

        Raises `Problem` when it failed in time, and `Taken`; the job is then not written down, and nothing goes on.
        """
        begun = _Begun()
        threading.Thread(target=self._behind, args=(job, run, begun), daemon=True).start()
        until = time.monotonic() + patience
        while not begun.over.wait(max(0.0, min(_LOOK_SECONDS, until - time.monotonic()))):
            if time.monotonic() >= until or self._draining.is_set():
                break
        with begun.lock:
            if begun.over.is_set():
                if begun.error is not None:
                    raise begun.error
                return self._store.add(job)
            try:
                made = self._store.add(replace(job, status="extracting"), owner=self._owner, lease=self._settings.lease)
            except BaseException:
                self._extractor.abort(run)
                raise
            self._mine[job.id] = 0.0
            begun.behind = True
            return made

    def _behind(self, job: Job, run: rundir.RunDir, begun: _Begun) -> None:
        error: Exception | None = None
        try:
            self._extractor.extract(run)
        except Exception as failure:  # the thread's outermost door: the request, or the job's row, gets it
            error = failure
        with begun.lock:
            begun.error = error
            begun.over.set()
        if begun.behind:
            try:
                self._settle(job, error)
            except SQLAlchemyError:
                log.exception("%s is extracted anew when its lease has ended", job.id, extra={"job": job.id})
            finally:
                self._mine.pop(job.id, None)

    def _loop(self, look: Callable[[], None], sooner: threading.Event) -> None:
        trouble: type[Exception] | None = None
        while not self._over.is_set():
            sooner.wait(self._settings.tick)
            try:
                look()
                trouble = None
            except (OSError, SQLAlchemyError) as error:  # a full disk, a database that is away: both may come back
                if type(error) is not trouble:  # what lasts is said once, not at every tick
                    log.exception("extractions cannot be looked after just now")
                trouble = type(error)

    def _next(self) -> None:
        """Extract the oldest job that nobody looks after, if there is one."""
        self._wake.clear()
        job = self._rows.take(self._owner, self._settings.lease, but=tuple(self._mine), last=self._last)
        if job is None or self._over.is_set():
            return
        self._last = job.tenant
        self._wake.set()  # there may be another one
        run = rundir.RunDir(self._settings.runs / job.id)
        self._mine[job.id] = 0.0
        try:
            error: Exception | None = None
            try:
                if not run.plan.exists():
                    self._extractor.extract(run, in_turn=True)
            except Exception as failure:  # as in `_behind`: whatever it was, the job's row gets it
                error = failure
            self._settle(job, error)
        finally:
            self._mine.pop(job.id, None)

    def _keep(self) -> None:
        """Renew the leases of what is extracted here, and end what was cancelled or taken over meanwhile."""
        now = time.monotonic()
        for job_id, due in list(self._mine.items()):
            lease = self._settings.lease if now >= due else 0.0
            if self._rows.keep(job_id, self._owner, lease):
                if lease and job_id in self._mine:
                    self._mine[job_id] = now + lease / 3
            elif job_id in self._mine:
                self._extractor.abort(rundir.RunDir(self._settings.runs / job_id))

    def _settle(self, job: Job, error: Exception | None) -> None:
        """Write down how an extraction ended, unless the job was cancelled or this server goes."""
        if self._over.is_set() and error is not None:
            return
        code, message = "", ""
        if error is not None:
            code, message = "internal", "Something failed inside the server; its log says what."
            if isinstance(error, Problem):
                code, message = error.code, tail.clean(error.detail)
            log.warning("%s was not extracted: %s", job.id, code, extra={"job": job.id}, exc_info=error)
        if self._rows.settle(job.id, self._owner, code=code, message=message) and not error:
            self._queued()
