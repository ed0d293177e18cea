"""Jobs whose extraction goes on behind their answer, as rows: who looks after them, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from service import outbox
from service.database import Database, jobs
from service.store import Job, Store

_EXTRACTING = jobs.c.status == "extracting"


class Extractions:
    """Every method is one transaction and may be called from any thread."""

    def __init__(self, database: Database, store: Store) -> None:
        self._database = database
        self._store = store

    def take(self, owner: str, seconds: float, *, but: Collection[str] = (), last: str = "") -> Job | None:
        """The first job to be extracted that nobody looks after and that is not one of `but`; `owner` does now.

        By priority, then another tenant's than the `last` one's, so that none has to wait for all jobs of another.
        """
        waiting = sa.and_(_EXTRACTING, jobs.c.id.not_in(but))
        with self._database.look() as connection:  # mostly there is none, and no writer has to wait for that answer
            if connection.scalar(sa.select(jobs.c.id).where(waiting).limit(1)) is None:
                return None
        with self._database.write() as connection:
            now = self._database.now(connection)
            first = sa.select(jobs.c.id).where(waiting, jobs.c.lease_until < now)
            first = first.order_by(jobs.c.priority.desc(), jobs.c.tenant == last, jobs.c.seq).limit(1)
            job_id = connection.scalar(self._database.locked(first))
            if job_id is None:
                return None
            lease = {"lease_owner": owner, "lease_until": now + seconds}
            connection.execute(jobs.update().where(jobs.c.id == job_id).values(lease))
        return self._store.get(job_id)

    def keep(self, job_id: str, owner: str, seconds: float) -> bool:
        """Whether `owner` still looks after this job; with `seconds`, for that long from now on."""
        mine = self._mine(job_id, owner)
        if not seconds:
            with self._database.look() as connection:
                return connection.scalar(sa.select(jobs.c.id).where(mine)) is not None
        with self._database.write() as connection:
            renewed = jobs.update().where(mine).values(lease_until=self._database.now(connection) + seconds)
            return connection.execute(renewed).rowcount == 1

    def release(self, owner: str | None = None) -> None:
        """Let what `owner` looks after be taken over at once; without a name, what anybody looks after."""
        whose = _EXTRACTING if owner is None else sa.and_(_EXTRACTING, jobs.c.lease_owner == owner)
        with self._database.write() as connection:
            connection.execute(jobs.update().where(whose).values(lease_owner="", lease_until=0.0))

    def settle(self, job_id: str, owner: str, *, code: str = "", message: str = "") -> bool:
        """Queue a job that has its student, or fail it. False when it was cancelled or taken over meanwhile."""
        change: dict[str, Any] = {"status": "queued", "lease_owner": "", "lease_until": 0.0}
        if code:
            change |= {"status": "failed", "error_code": code, "error_message": message, "ended": time.time()}
        with self._database.write() as connection:
            done = connection.execute(jobs.update().where(self._mine(job_id, owner)).values(change)).rowcount == 1
            if done:
                outbox.note(connection, [job_id])
        return done

    @staticmethod
    def _mine(job_id: str, owner: str) -> sa.ColumnElement[bool]:
        return sa.and_(jobs.c.id == job_id, _EXTRACTING, jobs.c.lease_owner == owner)
