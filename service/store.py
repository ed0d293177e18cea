"""What people asked: jobs and their wishes, and which slots they hold, as rows of the database."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import sqlalchemy as sa

from etd_ds.contract import spec
from service import status as statuses
from service.database import Database, jobs, slots
from service.status import Status, Wish


@dataclass(frozen=True)
class Job:
    """One row of `jobs`. `attempt` counts starts; it is the fencing token of whoever settles the job."""

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
    seq: int = 0


_COLUMNS = [jobs.c[one.name] for one in fields(Job)]

_others = jobs.alias("others")
_in_use = (
    sa.select(sa.func.coalesce(sa.func.sum(_others.c.ranks), 0))
    .where(_others.c.tenant == jobs.c.tenant, _others.c.status == "running")
    .correlate(jobs)
    .scalar_subquery()
)
_ORDER = (jobs.c.priority.desc(), _in_use, jobs.c.seq)
"""Who is next: by priority, then the tenant that uses least right now, then by age."""


def _job(row: sa.RowMapping) -> Job:
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

    # ---- what people do

    def add(self, job: Job) -> Job:
        """Insert a job. Raises `Taken` when its tenant has used its request key before."""
        values = {one.name: getattr(job, one.name) for one in fields(Job) if one.name != "seq"}
        values |= {"spec": job.spec.model_dump_json(exclude_unset=True), "labels": json.dumps(job.labels)}
        try:
            with self._database.write() as connection:
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
        query = sa.select(*_COLUMNS).where(jobs.c.id == job_id)
        if tenant is not None:
            query = query.where(jobs.c.tenant == tenant)
        with self._database.look() as connection:
            row = connection.execute(query).mappings().first()
        return _job(row) if row else None

    def by_request(self, tenant: str, key: str) -> Job | None:
        """The job that a tenant made with this request key."""
        query = sa.select(*_COLUMNS).where(jobs.c.tenant == tenant, jobs.c.request_key == key)
        with self._database.look() as connection:
            row = connection.execute(query).mappings().first()
        return _job(row) if row else None

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
        query = sa.select(*_COLUMNS).order_by(jobs.c.seq.desc()).limit(limit)
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
            return [_job(row) for row in connection.execute(query).mappings()]

    def ask(self, job_id: str, wish: Wish) -> Job | None:
        """Note a wish and what follows from it at once; the job afterwards, or `None` if it is not allowed now."""
        with self._database.write() as connection:
            row = (
                connection.execute(self._database.locked(sa.select(*_COLUMNS).where(jobs.c.id == job_id)))
                .mappings()
                .one()
            )
            job = _job(row)
            if job.status not in statuses.ALLOWED[wish]:
                return None
            change: dict[str, Any] = {}
            if job.status == "running":
                if wish != "resume" and job.wish != "cancel":  # a cancel is not taken back
                    change["wish"] = wish
            else:
                change = _becomes(job, statuses.decide(job.status, wish, statuses.Seen()).status)
                if wish == "retry":
                    change |= {"retries": 0, "not_before": 0.0}
            if change:
                connection.execute(jobs.update().where(jobs.c.id == job_id).values(change))
        return self.get(job_id)

    def delete(self, job_id: str) -> bool:
        """Forget a job that holds nothing; False if it is running or may begin to."""
        idle = jobs.c.status.in_((*statuses.ENDED, "paused"))
        with self._database.write() as connection:
            return connection.execute(jobs.delete().where(jobs.c.id == job_id, idle)).rowcount == 1

    def ahead_of(self, job: Job) -> int:
        """How many queued jobs come before this one, as things stand."""
        query = sa.select(jobs.c.id).where(jobs.c.status == "queued").order_by(*_ORDER)
        with self._database.look() as connection:
            waiting = list(connection.scalars(query))
        return waiting.index(job.id) if job.id in waiting else 0

    def unfinished(self, tenant: str) -> int:
        """How many of a tenant's jobs have not ended."""
        waiting = jobs.c.status.in_(("queued", "running", "paused"))
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

    def ids(self) -> set[str]:
        """Every job's id."""
        with self._database.look() as connection:
            return set(connection.scalars(sa.select(jobs.c.id)))

    # ---- what schedulers do

    def set_slots(self, count: int) -> None:
        """Have exactly `count` slots; one that is too many goes when its job has left it."""
        with self._database.write() as connection:
            there = set(connection.scalars(sa.select(slots.c.id)))
            for number in sorted(set(range(count)) - there):
                connection.execute(slots.insert().values(id=number, job=None))
            connection.execute(slots.delete().where(slots.c.id >= count, slots.c.job.is_(None)))

    def held(self, job_id: str) -> tuple[int, ...]:
        """The slots that a job holds."""
        with self._database.look() as connection:
            return tuple(connection.scalars(sa.select(slots.c.id).where(slots.c.job == job_id).order_by(slots.c.id)))

    def free_slots(self) -> int:
        with self._database.look() as connection:
            return int(connection.scalar(sa.select(sa.func.count()).where(slots.c.job.is_(None))) or 0)

    def claim(self, owner: str, lease: float) -> Job | None:
        """Take the first queued job, if enough slots are free for it, and give it those: one transaction.

        The first in `_ORDER` waits for its slots even when a later one would fit: otherwise big jobs would starve.
        """
        now = time.time()
        due = sa.and_(jobs.c.status == "queued", jobs.c.not_before <= now)
        first = sa.select(*_COLUMNS).where(due).order_by(*_ORDER).limit(1)
        with self._database.write() as connection:
            free_ids = sa.select(slots.c.id).where(slots.c.job.is_(None)).order_by(slots.c.id)
            # every claim locks all free slots, so two schedulers claim one after the other
            free = connection.scalars(self._database.locked(free_ids)).all()
            row = connection.execute(self._database.locked(first)).mappings().first() if free else None
            if row is None or row["ranks"] > len(free):
                return None
            connection.execute(
                jobs.update()
                .where(jobs.c.id == row["id"])
                .values(
                    status="running",
                    wish="",
                    attempt=row["attempt"] + 1,
                    started=row["started"] or now,
                    error_code="",
                    error_message="",
                    lease_owner=owner,
                    lease_until=now + lease,
                )
            )
            connection.execute(
                slots.update().where(slots.c.id.in_(free[: row["ranks"]]), slots.c.job.is_(None)).values(job=row["id"])
            )
        return self.get(row["id"])

    def lease(self, owner: str, seconds: float) -> list[Job]:
        """Running jobs that `owner` looks after for that long: its own, and those nobody has looked after."""
        now = time.time()
        running = jobs.c.status == "running"
        open_to_us = sa.or_(jobs.c.lease_owner == owner, jobs.c.lease_until < now)
        with self._database.write() as connection:
            connection.execute(
                jobs.update().where(running, open_to_us).values(lease_owner=owner, lease_until=now + seconds)
            )
            query = sa.select(*_COLUMNS).where(running, jobs.c.lease_owner == owner).order_by(jobs.c.seq)
            return [_job(row) for row in connection.execute(query).mappings()]

    def end_leases(self) -> None:
        """Let every running job be taken over at once: for a server that knows that no other one lives."""
        with self._database.write() as connection:
            connection.execute(jobs.update().where(jobs.c.status == "running").values(lease_until=0.0))

    def settle(self, job: Job, owner: str, verdict: statuses.Verdict, *, message: str = "", wait: float = 0.0) -> bool:
        """Write down that a running attempt ended. False when another scheduler or attempt has taken over."""
        change = _becomes(job, verdict.status)
        failed = verdict.status == "failed"
        change |= {"error_code": verdict.code if failed else "", "error_message": message if failed else ""}
        if verdict.status == "queued":
            change |= {"not_before": time.time() + wait, "retries": job.retries + (verdict.code != "stopped")}
        mine = sa.and_(
            jobs.c.id == job.id,
            jobs.c.status == "running",
            jobs.c.attempt == job.attempt,
            jobs.c.lease_owner == owner,
        )
        with self._database.write() as connection:
            if connection.execute(jobs.update().where(mine).values(change)).rowcount != 1:
                return False
            connection.execute(slots.update().where(slots.c.job == job.id).values(job=None))
        return True


def _becomes(job: Job, status: Status) -> dict[str, Any]:
    """The columns of a job that has got this status by being settled or asked."""
    change: dict[str, Any] = {"status": status, "wish": "", "lease_owner": "", "lease_until": 0.0}
    if status in statuses.ENDED:
        change["ended"] = job.ended or time.time()
    else:
        change |= {"ended": None, "error_code": "", "error_message": ""}
    return change
