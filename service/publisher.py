"""The loop that brings what runs have published to the bucket, and takes away what was deleted."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time

from sqlalchemy.exc import SQLAlchemyError

from etd_ds.contract import rundir
from service.settings import Settings
from service.status import ENDED, STATUSES
from service.storage import Away, Bucket
from service.store import Job, Store

log = logging.getLogger("etd_jobs")

_TICK = 2.0
_LONGEST_WAIT = 60.0


class Publisher:
    """One thread of a server. Of several on one data folder one works at a time; all it does may be done twice."""

    def __init__(self, settings: Settings, store: Store, bucket: Bucket) -> None:
        self._settings, self._store, self._bucket = settings, store, bucket
        self._done: dict[str, int] = {}
        """Jobs that had ended when they were looked at, and their attempt then: only another one brings news."""
        self._wake = threading.Event()
        self._over = threading.Event()
        self._wait = _TICK
        self.up_to_date = time.time()
        """When everything was last seen to be in the bucket, by this server or by the one that is at it now."""
        self._thread = threading.Thread(target=self._loop, name="publisher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def again(self, job_id: str) -> None:
        """Look at a job that may have published something since it ended."""
        self._done.pop(job_id, None)
        self._wake.set()

    def close(self) -> None:
        """End the loop. What it is in the middle of is done again by whoever starts next."""
        self._over.set()
        self._wake.set()

    def _loop(self) -> None:
        lock = os.open(self._settings.data_dir / "publisher.lock", os.O_RDWR | os.O_CREAT, 0o600)
        with contextlib.closing(os.fdopen(lock)):
            while not self._over.is_set():
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:  # another server is at it, and says how it goes
                    self.up_to_date = time.time()
                else:
                    self._try()
                self._wake.wait(self._wait)
                self._wake.clear()

    def _try(self) -> None:
        try:
            self.round()
        except (OSError, ValueError, SQLAlchemyError) as error:
            self._wait = min(2 * self._wait, _LONGEST_WAIT)
            log.warning("not everything can be published; again in %.0f s: %s", self._wait, error)
        else:
            self._wait, self.up_to_date = _TICK, time.time()

    def round(self) -> None:
        """One look at everything that may have news."""
        for gone in self._settings.incoming.iterdir():
            self._bucket.remove(gone)
        going = [status for status in STATUSES if status not in ENDED]
        active = {job.id: job for job in self._store.page(status=going, limit=1000)}
        failed: Exception | None = None
        for job_id, attempt in sorted(self._store.attempts().items()):
            if self._over.is_set():
                return
            if self._done.get(job_id) == attempt:
                continue
            try:
                self._look(active.get(job_id) or self._store.get(job_id))
            except Away:
                raise
            except FileNotFoundError:  # removed or replaced meanwhile: next time
                continue
            except (OSError, ValueError) as error:  # something is wrong with this folder; the others are not to wait
                failed = error
        if failed is not None:
            raise failed

    def _look(self, job: Job | None) -> None:
        if job is None or not (run := rundir.RunDir(self._settings.runs / job.id)).plan.exists():
            return
        if job.status in ENDED:
            self._done[job.id] = job.attempt  # before it is looked at: what `again` says meanwhile counts
        try:
            if self._bucket.publish(run, settled=job.status != "running"):
                log.info("%s is published as far as it is", job.id, extra={"job": job.id})
        except BaseException:
            self._done.pop(job.id, None)
            raise
