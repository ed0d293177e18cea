"""What people asked: jobs and their wishes, as rows of the database."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import sqlalchemy as sa

from etd_ds.contract import spec
from service import outbox
from service import status as statuses
from service.database import Database, jobs
from service.status import Status, Wish


@dataclass(frozen=True)
class Job:
    """One row of `jobs`. `attempt` counts starts; with the lease it says who may settle the job."""

    id: str
    spec: spec.JobSpec
    """As it was asked for: a teacher's or corpus' alias, not what it stands for."""
    ranks: int
    tenant: str = "default"
    status: Status = "queued"
    wish: Wish = ""
    labels: dict[str, str] = field(default_factory=dict)
    priority: int = 0
    attempt: int = 0
    retries: int = 0
    not_before: float = 0.0
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    error_code: str = ""
    error_message: str = ""
    request_key: str | None = None
    request_hash: str = ""
    webhook: str = ""
    webhook_events: str = ""
    """Names of `outbox.EVENTS`, with spaces between them."""
    worker: str = ""
    """Where its attempt runs; empty unless it is running."""
    trainer: str = ""
    """`ID:ATTEMPT` of the trainer that carries it or did so last: its own, or that of the job that it runs with."""
    apart: bool = False
    """Failed in company, so it is tried alone."""
    seq: int = 0


COLUMNS = [jobs.c[one.name] for one in fields(Job)]


def of_row(row: sa.RowMapping) -> Job:
    values: dict[str, Any] = dict(row)
    values["spec"] = spec.JobSpec.model_validate_json(values["spec"])
    values["labels"] = json.loads(values["labels"])
    return Job(**values)


class Taken(Exception):
    """The tenant's request key is in use: `job` is what it made."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.id)
        self.job = job


class Store:
    """Every method is one transaction and may be called from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, job: Job, *, owner: str = "", lease: float = 0.0) -> Job:
        """Insert a job, looked after by `owner`. Raises `Taken` when its tenant has used its request key before."""
        values = {one.name: getattr(job, one.name) for one in fields(Job) if one.name != "seq"}
        values |= {"spec": job.spec.model_dump_json(exclude_unset=True), "labels": json.dumps(job.labels)}
        values["alike"] = job.spec.alike()
        values["webhook_offset"] = 0 if "checkpoint" in job.webhook_events.split() else -1
        try:
            with self._database.write() as connection:
                until = self._database.now(connection) + lease if owner else 0.0
                values |= {"lease_owner": owner, "lease_until": until}
                connection.execute(jobs.insert().values(values))
        except sa.exc.IntegrityError:
            taken = self.by_request(job.tenant, job.request_key) if job.request_key else None
            if taken is None:
                raise
            raise Taken(taken) from None
        found = self.get(job.id)
        assert found is not None
        return found

    def get(self, job_id: str, *, tenant: str | None = None) -> Job | None:
        """The job, or `None` if there is none or it is another tenant's."""
        if "\0" in job_id:  # PostgreSQL would call that an error
            return None
        query = sa.select(*COLUMNS).where(jobs.c.id == job_id)
        if tenant is not None:
            query = query.where(jobs.c.tenant == tenant)
        with self._database.look() as connection:
            row = connection.execute(query).mappings().first()
        return of_row(row) if row else None

    def by_request(self, tenant: str, key: str) -> Job | None:
        """The job that a tenant made with this request key."""
        query = sa.select(*COLUMNS).where(jobs.c.tenant == tenant, jobs.c.request_key == key)
        with self._database.look() as connection:
            row = connection.execute(query).mappings().first()
        return of_row(row) if row else None

    def page(
        self,
        *,
        tenant: str | None = None,
        before: int | None = None,
        status: Sequence[Status] = (),
        labels: Mapping[str, str] | None = None,
        limit: int = 100,
    ) -> list[Job]:
        """Jobs, the newest first; those with a smaller `seq` than `before`, with one of these statuses, all labels."""
        query = sa.select(*COLUMNS).order_by(jobs.c.seq.desc()).limit(limit)
        if tenant is not None:
            query = query.where(jobs.c.tenant == tenant)
        if before is not None:
            query = query.where(jobs.c.seq < before)
        if status:
            query = query.where(jobs.c.status.in_(status))
        position = sa.func.instr if self._database.sqlite else sa.func.strpos
        for name, value in (labels or {}).items():
            # quotes inside of names and values are escaped in JSON, so only a whole pair looks like this
            query = query.where(position(jobs.c.labels, json.dumps({name: value})[1:-1]) > 0)
        with self._database.look() as connection:
            return [of_row(row) for row in connection.execute(query).mappings()]

    def ask(self, job_id: str, wish: Wish, *, extracted: bool = True) -> Job | None:
        """Note a wish and what follows from it at once; the job afterwards, or `None` if it is not allowed or gone.

        `extracted`: the job has its initial student.
        """
        with self._database.write() as connection:
            row = (
                connection.execute(self._database.locked(sa.select(*COLUMNS).where(jobs.c.id == job_id)))
                .mappings()
                .first()
            )
            if row is None:
                return None
            job = of_row(row)
            if job.status not in statuses.ALLOWED[wish]:
                return None
            change: dict[str, Any] = {}
            if job.status == "running":
                if job.wish != "cancel":  # which is not taken back; a pause is
                    change["wish"] = "" if wish == "resume" else wish
            else:
                verdict = statuses.decide(job.status, wish, statuses.Seen(), extracted=extracted)
                change = becomes(job, verdict.status)
                if wish == "retry":
                    change |= {"retries": 0, "not_before": 0.0}
            if change:
                connection.execute(jobs.update().where(jobs.c.id == job_id).values(change))
            if change.get("status", job.status) != job.status:
                outbox.note(connection, [job_id])
        return self.get(job_id)

    def ended_before(self, when: float, limit: int) -> list[str]:
        """Jobs that ended before that time, the oldest first."""
        query = sa.select(jobs.c.id).where(jobs.c.status.in_(statuses.ENDED), jobs.c.ended < when)
        with self._database.look() as connection:
            return list(connection.scalars(query.order_by(jobs.c.ended).limit(limit)))

    def delete(self, job_id: str, *, ended_before: float | None = None) -> bool:
        """Forget a job that holds nothing; False if it is running or may begin to, or did not end before that time."""
        which = [jobs.c.id == job_id, jobs.c.status.in_((*statuses.ENDED, "paused"))]
        if ended_before is not None:
            which.append(jobs.c.ended < ended_before)
        with self._database.write() as connection:
            return connection.execute(jobs.delete().where(*which)).rowcount == 1

    def unfinished(self, tenant: str) -> int:
        """How many of a tenant's jobs have not ended."""
        waiting = jobs.c.status.in_(("extracting", "queued", "running", "paused"))
        query = sa.select(sa.func.count()).where(jobs.c.tenant == tenant, waiting)
        with self._database.look() as connection:
            return int(connection.scalar(query) or 0)

    def counts(self) -> dict[str, int]:
        """How many jobs have each status."""
        query = sa.select(jobs.c.status, sa.func.count()).group_by(jobs.c.status)
        with self._database.look() as connection:
            found = {row[0]: int(row[1]) for row in connection.execute(query)}
        return {status: found.get(status, 0) for status in statuses.STATUSES}

    def failures(self) -> dict[str, int]:
        """How many failed jobs there are of each error code."""
        query = (
            sa.select(jobs.c.error_code, sa.func.count()).where(jobs.c.status == "failed").group_by(jobs.c.error_code)
        )
        with self._database.look() as connection:
            return {row[0]: int(row[1]) for row in connection.execute(query)}

    def waits(self) -> tuple[float, float]:
        """The age of the oldest queued job, and the mean time that started jobs of the last day waited, in seconds."""
        now = time.time()
        oldest = sa.select(sa.func.min(jobs.c.created)).where(jobs.c.status == "queued")
        waited = sa.select(sa.func.avg(jobs.c.started - jobs.c.created)).where(jobs.c.started > now - 86400)
        with self._database.look() as connection:
            first = connection.scalar(oldest)
            return (0.0 if first is None else now - first), float(connection.scalar(waited) or 0.0)

    def attempts(self) -> dict[str, int]:
        """How often each job was started, by its id."""
        with self._database.look() as connection:
            return {row[0]: int(row[1]) for row in connection.execute(sa.select(jobs.c.id, jobs.c.attempt))}

    def ids(self) -> set[str]:
        """Every job's id."""
        with self._database.look() as connection:
            return set(connection.scalars(sa.select(jobs.c.id)))


def becomes(job: Job, status: Status) -> dict[str, Any]:
    """The columns of a job that has got this status by being settled or asked."""
    change: dict[str, Any] = {"status": status, "wish": "", "lease_owner": "", "lease_until": 0.0}
    if status in statuses.ENDED:
        change["ended"] = job.ended or time.time()
    else:
        change |= {"ended": None, "error_code": "", "error_message": ""}
    return change
