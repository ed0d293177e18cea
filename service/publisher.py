"""The loop that brings what runs have published to the bucket, and takes away what was deleted or is too old."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from etd_ds.contract import rundir
from service.settings import Settings
from service.status import ENDED, STATUSES
from service.storage import Away, Bucket, Folder, Storage
from service.store import Job, Store

log = logging.getLogger("etd_jobs")

_TICK = 2.0
_LONGEST_WAIT = 60.0
_AT_ONCE = 20
"""Old jobs that are removed in one round."""


class Discard(Protocol):
    """`Admission.discard`."""

    def __call__(self, job_id: str, *, ended_before: float) -> bool: ...


class Publisher:
    """One thread of a server. Of several on one data folder one works at a time; all it does may be done twice.

    Without a bucket it only takes away.
    """

    def __init__(self, settings: Settings, store: Store, bucket: Bucket | None, discard: Discard) -> None:
        self._settings, self._store, self._bucket, self._discard = settings, store, bucket, discard
        self._storage: Storage = bucket or Folder()
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
            log.warning("not everything can be published or removed; again in %.0f s: %s", self._wait, error)
        else:
            self._wait, self.up_to_date = _TICK, time.time()

    def round(self) -> None:
        """One look at everything that is to go, or may have news."""
        for gone in self._settings.incoming.iterdir():
            self._storage.remove(gone)
        if self._settings.keep_days:
            self._remove_old(time.time() - self._settings.keep_days * 86400)
        if self._bucket is not None:
            self._publish(self._bucket)

    def _remove_old(self, before: float) -> None:
        """Remove some jobs that ended before that time. None is being published: that is this thread's work too."""
        for job_id in self._store.ended_before(before, _AT_ONCE):
            # what is left there cannot be removed now: the bucket is away, and more would only heap up
            if self._over.is_set() or any(self._settings.incoming.iterdir()):
                return
            if self._discard(job_id, ended_before=before):
                log.info("%s ended more than %g days ago and is removed", job_id, self._settings.keep_days,
                         extra={"job": job_id})  # fmt: skip

    def _publish(self, bucket: Bucket) -> None:
        """Look at every job that may have news."""
        for revised in self._settings.revised.iterdir():
            revised.unlink(missing_ok=True)
            self._done.pop(revised.name, None)
        going = [status for status in STATUSES if status not in ENDED]
        active = {job.id: job for job in self._store.page(status=going, limit=1000)}
        failed: Exception | None = None
        for job_id, attempt in sorted(self._store.attempts().items()):
            if self._over.is_set():
                return
            if self._done.get(job_id) == attempt:
                continue
            try:
                self._look(bucket, active.get(job_id) or self._store.get(job_id))
            except Away:
                raise
            except FileNotFoundError:  # removed or replaced meanwhile: next time
                continue
            except (OSError, ValueError) as error:  # something is wrong with this folder; the others are not to wait
                failed = error
        if failed is not None:
            raise failed

    def _look(self, bucket: Bucket, job: Job | None) -> None:
        if job is None or not (run := rundir.RunDir(self._settings.runs / job.id)).plan.exists():
            return
        if bucket.publish(run, settled=job.status != "running"):
            log.info("%s is published as far as it is", job.id, extra={"job": job.id})
        if job.status in ENDED:
            self._done[job.id] = job.attempt
