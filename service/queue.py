"""What schedulers do with jobs: workers and their slots, and which trainer carries which jobs under whose lease.

A worker is a machine that runs trainers, or a whole cluster; one or more schedulers look after it, each job's lease
says which. When a lease has ended, another scheduler of the same worker goes on; when it has been over for the worker's
`lost_after` seconds, the worker is taken for lost, and its jobs are queued again, for all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import sqlalchemy as sa

from etd_ds.contract import errors
from service import outbox
from service import status as statuses
from service.database import Database, jobs, slots, workers
from service.store import COLUMNS, Job, becomes, of_row

CLUSTER = "slurm"
"""The worker that stands for a whole Slurm cluster."""
SILENT = 60.0
"""Seconds without a word after which a worker does not count as there."""
RENEWED = 2 / 3
"""A lease has at least this share of its time left after it was asked for."""
_FORGOTTEN = 86400.0


_holders = jobs.alias("holders")
_used = (
    sa.select(_holders.c.tenant, sa.func.count().label("slots"))
    .select_from(slots.join(_holders, slots.c.job == _holders.c.id))
    .group_by(_holders.c.tenant)
    .subquery("used")
)


def _in_line(*columns: sa.Column[Any]) -> sa.Select[Any]:
    """Queued jobs by priority, then the tenant that uses least right now, then by age: who comes first is next."""
    return (
        sa.select(*columns)
        .select_from(jobs.outerjoin(_used, _used.c.tenant == jobs.c.tenant))
        .where(jobs.c.status == "queued")
        .order_by(jobs.c.priority.desc(), sa.func.coalesce(_used.c.slots, 0), jobs.c.seq)
    )


class Line(NamedTuple):
    """Who waits for what, as things stand."""

    places: dict[str, int]
    """How many jobs come before each one."""
    workers: list[Worker]


@dataclass(frozen=True)
class Worker:
    """One row of `workers`, with what is known of it just now."""

    name: str
    host: str
    slots: int
    lost_after: float
    seen: float
    draining: bool
    free: int = 0
    """Slots that no job holds."""
    there: bool = False
    """Whether it was heard of lately and takes jobs."""


@dataclass(frozen=True)
class Trainer:
    """One process group and the jobs that it carries; the first is the one that it was started for."""

    jobs: tuple[Job, ...]

    @property
    def id(self) -> str:
        """Its first job's id: in that job's folder the executor keeps its state."""
        return self.jobs[0].id

    @property
    def attempt(self) -> int:
        """The first job's attempt."""
        return self.jobs[0].attempt


class Outcome(NamedTuple):
    """What becomes of one job when its trainer has ended."""

    verdict: statuses.Verdict
    message: str = ""
    wait: float = 0.0
    """Seconds before it may start again."""


class Queue:
    """Every method is one transaction and may be called from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ---- workers

    def register(self, name: str, *, host: str, count: int, lost_after: float) -> None:
        """Have a worker with `count` slots; one slot too many goes when its job has left it.

        Raises `EtdError` when a living worker of another machine has this name, or is of the other kind. One that is
        never lost is the only one, from wherever it is looked after.
        """
        with self._database.write() as connection:
            now = self._database.now(connection)
            living = connection.execute(sa.select(workers).where(workers.c.seen > now - SILENT)).mappings().all()
            for other in living:
                _agree(name, host if lost_after else other["host"], other)
            row = {"host": host, "slots": count, "lost_after": lost_after, "seen": now, "draining": False}
            if connection.execute(workers.update().where(workers.c.name == name).values(row)).rowcount == 0:
                connection.execute(workers.insert().values(name=name, **row))
            mine = slots.c.worker == name
            there = set(connection.scalars(sa.select(slots.c.id).where(mine)))
            for number in sorted(set(range(count)) - there):
                connection.execute(slots.insert().values(worker=name, id=number, job=None))
            connection.execute(slots.delete().where(mine, slots.c.id >= count, slots.c.job.is_(None)))

    def leave(self, name: str) -> bool:
        """Forget a worker that has no job any more; False if it has one."""
        with self._database.write() as connection:
            mine = slots.c.worker == name
            # locked, or another of its schedulers might claim a job for slots that are about to go
            held = sa.select(slots.c.job).where(mine).order_by(slots.c.id)
            if any(connection.scalars(self._database.locked(held))):
                return False
            connection.execute(slots.delete().where(mine))
            connection.execute(workers.delete().where(workers.c.name == name))
        return True

    def workers(self) -> list[Worker]:
        """All workers, by name."""
        free = (
            sa.select(sa.func.count())
            .where(slots.c.worker == workers.c.name, slots.c.job.is_(None))
            .correlate(workers)
            .scalar_subquery()
        )
        with self._database.look() as connection:
            now = self._database.now(connection)
            rows = connection.execute(sa.select(workers, free.label("free")).order_by(workers.c.name)).mappings()
            return [Worker(**row, there=now - row["seen"] < SILENT and not row["draining"]) for row in rows]

    def line(self) -> Line:
        """The jobs that wait, and the workers that are there."""
        with self._database.look() as connection:
            waiting = connection.scalars(_in_line(jobs.c.id))
            places = {job_id: place for place, job_id in enumerate(waiting)}
        return Line(places, [worker for worker in self.workers() if worker.there])

    def held(self, job_id: str) -> tuple[int, ...]:
        """The slots that a job holds, for itself and for those that it is trained with."""
        with self._database.look() as connection:
            return tuple(connection.scalars(sa.select(slots.c.id).where(slots.c.job == job_id).order_by(slots.c.id)))

    # ---- trainers

    def claim(self, worker: str, owner: str, lease: float, *, together: int = 1) -> Trainer | None:
        """Take the first queued job, if enough of the worker's slots are free for it: one transaction.

        The first in line waits for its slots even when a later one would fit: otherwise big jobs would starve. Only
        what this worker can never run is passed over. Up to `together` jobs that agree go with it, on its slots.
        """
        with self._database.write() as connection:
            now = self._database.now(connection)
            mine = slots.c.worker == worker
            size = int(connection.scalar(sa.select(sa.func.count()).where(mine)) or 0)
            free_ids = sa.select(slots.c.id).where(mine, slots.c.job.is_(None)).order_by(slots.c.id)
            # every claim locks all free slots, so two schedulers of a worker claim one after the other
            free = connection.scalars(self._database.locked(free_ids)).all()
            due = jobs.c.not_before <= time.time()
            first = _in_line(*COLUMNS).where(due, jobs.c.ranks <= size).limit(1)
            row = connection.execute(self._database.locked(first, of=jobs)).mappings().first() if free else None
            if row is None or row["ranks"] > len(free):
                return None
            crew = [row]
            if together > 1 and not row["apart"]:
                # those that never began, or that a trainer carried before: they stand at the same step
                mates = (
                    sa.select(*COLUMNS)
                    .where(due, jobs.c.status == "queued")
                    .where(*(jobs.c[name] == row[name] for name in ("tenant", "trainer")))
                    .where(jobs.c.alike == of_row(row).spec.alike(), jobs.c.apart.is_(False), jobs.c.id != row["id"])
                    .order_by(jobs.c.seq)
                    .limit(together - 1)
                )
                crew += connection.execute(self._database.locked(mates, or_skipped=True)).mappings().all()
            begun = {
                "status": "running",
                "wish": "",
                "error_code": "",
                "error_message": "",
                "lease_owner": owner,
                "lease_until": now + lease,
                "worker": worker,
                "trainer": f"{row['id']}:{row['attempt'] + 1}",
                "attempt": jobs.c.attempt + 1,
                "started": sa.func.coalesce(jobs.c.started, now),
            }
            ids = [one["id"] for one in crew]
            connection.execute(jobs.update().where(jobs.c.id.in_(ids)).values(begun))
            outbox.note(connection, ids)
            connection.execute(slots.update().where(mine, slots.c.id.in_(free[: row["ranks"]])).values(job=row["id"]))
            found = list(_trainers(connection, jobs.c.id.in_(ids)))
        return found[0]

    def running(self) -> int:
        """How many trainers there are: fewer than running jobs, where some are trained together."""
        query = sa.select(sa.func.count(jobs.c.trainer.distinct())).where(jobs.c.status == "running")
        with self._database.look() as connection:
            return int(connection.scalar(query) or 0)

    def lease(self, worker: str, owner: str, seconds: float, *, draining: bool = False) -> list[Trainer] | None:
        """Say that the worker lives; its trainers that `owner` looks after for that long: its own, and those left.

        None when the worker was forgotten, or left on behalf of another of its schedulers: it has to register again.
        """
        with self._database.write() as connection:
            now = self._database.now(connection)
            me = workers.c.name == worker
            row = connection.execute(sa.select(workers.c.seen, workers.c.draining).where(me)).first()
            if row is None:
                return None
            # what is said again and again is written only when it is about to be old: each time costs a sync
            if now - row.seen > SILENT / 12 or row.draining != draining:
                connection.execute(workers.update().where(me).values(seen=now, draining=draining))
            running = sa.and_(jobs.c.status == "running", jobs.c.worker == worker)
            old = sa.and_(jobs.c.lease_owner == owner, jobs.c.lease_until < now + seconds * RENEWED)
            ours = sa.or_(old, jobs.c.lease_until < now)
            connection.execute(jobs.update().where(running, ours).values(lease_owner=owner, lease_until=now + seconds))
            return list(_trainers(connection, running, jobs.c.lease_owner == owner))

    def take_over(self, worker: str, owner: str, seconds: float) -> None:
        """Look after all of the worker's trainers: for a scheduler that knows that its others are gone."""
        with self._database.write() as connection:
            until = self._database.now(connection) + seconds
            running = sa.and_(jobs.c.status == "running", jobs.c.worker == worker)
            connection.execute(jobs.update().where(running).values(lease_owner=owner, lease_until=until))

    def lost(self, owner: str, seconds: float) -> list[Trainer]:
        """Take over the trainers of lost workers, to settle them; workers that are long gone are forgotten."""
        with self._database.write() as connection:
            now = self._database.now(connection)
            patience = sa.select(workers.c.lost_after).where(workers.c.name == jobs.c.worker).scalar_subquery()
            late = sa.and_(jobs.c.status == "running", patience > 0, jobs.c.lease_until + patience < now)
            taken = {"lease_owner": owner, "lease_until": now + seconds}
            ids = list(connection.scalars(jobs.update().where(late).values(taken).returning(jobs.c.id)))
            used = sa.select(slots.c.worker).where(slots.c.job.is_not(None))
            gone = sa.and_(workers.c.seen < now - _FORGOTTEN, workers.c.lost_after > 0, workers.c.name.not_in(used))
            if names := list(connection.scalars(sa.select(workers.c.name).where(gone))):
                connection.execute(slots.delete().where(slots.c.worker.in_(names)))
                connection.execute(workers.delete().where(workers.c.name.in_(names)))
            return list(_trainers(connection, jobs.c.id.in_(ids))) if ids else []

    def settle(self, trainer: Trainer, owner: str, outcomes: Sequence[Outcome]) -> bool:
        """Write down that a trainer ended: what becomes of all its jobs, and that its slots are free.

        False, and nothing is changed, when another scheduler has taken over or a wish has come in meanwhile.
        """
        with self._settling() as connection:
            for job, outcome in zip(trainer.jobs, outcomes, strict=True):
                mine = sa.and_(
                    *(jobs.c[name] == getattr(job, name) for name in ("id", "attempt", "trainer", "wish")),
                    jobs.c.status == "running",
                    jobs.c.lease_owner == owner,
                )
                change = _change(job, outcome)
                if connection.execute(jobs.update().where(mine).values(change)).rowcount != 1:
                    raise _TakenOver
                outbox.note(connection, [job.id])
            connection.execute(slots.update().where(slots.c.job == trainer.id).values(job=None))
            return True
        return False

    @contextmanager
    def _settling(self) -> Iterator[sa.Connection]:
        try:
            with self._database.write() as connection:
                yield connection
        except _TakenOver:
            pass


class _TakenOver(Exception):
    """Rolls the transaction back."""


def _change(job: Job, outcome: Outcome) -> dict[str, Any]:
    verdict = outcome.verdict
    failed, again = verdict.status == "failed", verdict.status == "queued"
    change = becomes(job, verdict.status) | {"worker": ""}
    change |= {"error_code": verdict.code if failed else "", "error_message": outcome.message if failed else ""}
    if again:
        change |= {"not_before": time.time() + outcome.wait, "apart": job.apart or verdict.code == "apart"}
        change["retries"] = job.retries + (verdict.code not in statuses.NO_FAULT)
    return change


def _trainers(connection: sa.Connection, *where: sa.ColumnElement[bool]) -> Iterator[Trainer]:
    """The trainers of these jobs, the job first that each was started for."""
    query = sa.select(*COLUMNS).where(*where).order_by(jobs.c.trainer, jobs.c.seq)
    found = [of_row(row) for row in connection.execute(query).mappings()]
    for name, crew in groupby(found, key=lambda job: job.trainer):
        first = name.rpartition(":")[0]
        yield Trainer(tuple(sorted(crew, key=lambda job: job.id != first)))


def _agree(name: str, host: str, other: sa.RowMapping) -> None:
    """Two workers beside each other: never two machines of one name, and never a cluster beside machines."""
    if other["name"] == name and other["host"] != host:
        raise errors.EtdError(
            f"--name: a worker {name} of {other['host']} was here less than {SILENT:g} s ago; wanted another name, "
            "or that one gone",
            field="name",
            wanted="a name that no other machine's worker has",
            got=name,
        )
    if (other["name"] == CLUSTER) != (name == CLUSTER):
        raise errors.EtdError(
            f"--database: worker {other['name']} of {other['host']} is here, and {name} would be of the other kind; "
            "wanted one database for a Slurm cluster, another for machines",
            field="database",
            wanted="either a Slurm cluster or machines",
            got=name,
        )
