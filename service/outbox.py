"""Webhook messages that wait for delivery, as rows: each is written in the transaction that it tells of."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, get_args

import sqlalchemy as sa

from etd_ds.contract import events
from service import status as statuses
from service.database import Database, deliveries, jobs, webhook_secrets

EventName = Literal["running", "paused", "checkpoint", "succeeded", "failed", "cancelled"]
EVENTS: tuple[EventName, ...] = get_args(EventName)
_WATCHED_SECONDS = 86400.0
"""How long after its end a job's last checkpoints may still be told of."""


@dataclass(frozen=True)
class Delivery:
    """A message that is to be sent now. `tries` counts this one."""

    id: str
    tenant: str
    job: str
    url: str
    body: str
    tries: int


def note(connection: sa.Connection, job_ids: Collection[str], checkpoints: Sequence[events.Checkpoint] = ()) -> None:
    """Write down what these jobs have just become, or one's new checkpoints, for those who asked to hear of it."""
    row = [jobs.c[name] for name in ("id", "tenant", "status", "attempt", "labels", "error_code", "error_message")]
    asked = sa.select(*row, jobs.c.webhook, jobs.c.webhook_events).where(jobs.c.id.in_(job_ids), jobs.c.webhook != "")
    for job in connection.execute(asked).mappings().all():
        failed = {"code": job["error_code"], "message": job["error_message"]} if job["error_code"] else None
        data = {"id": job["id"], "status": job["status"], "attempt": job["attempt"], "error": failed}
        data["labels"] = json.loads(job["labels"])
        told: list[tuple[str, dict[str, Any]]] = [
            ("checkpoint", {**data, "checkpoint": {"name": one.name, "step": one.step}}) for one in checkpoints
        ]
        for name, content in told or [(job["status"], data)]:
            if name in job["webhook_events"].split():
                connection.execute(deliveries.insert().values(_message(job, name, content)))


def _message(job: sa.RowMapping, name: str, data: dict[str, Any]) -> dict[str, Any]:
    now = time.time()
    date = datetime.fromtimestamp(now, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {
        "id": f"msg_{secrets.token_hex(12)}",
        "tenant": job["tenant"],
        "job": job["id"],
        "url": job["webhook"],
        "body": json.dumps({"type": f"job.{name}", "timestamp": date, "data": data}, separators=(",", ":")),
        "tries": 0,
        "not_before": 0.0,
    }


class Outbox:
    """Every method is one transaction and may be called from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def secret(self, tenant: str, *, new: bool = False) -> str:
        """What a tenant's messages are signed with; made when it is first asked for, or anew."""
        mine = webhook_secrets.c.tenant == tenant
        with self._database.look() as connection:
            found = connection.scalar(sa.select(webhook_secrets.c.secret).where(mine))
        if found is not None and not new:
            return str(found)
        made = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        try:
            with self._database.write() as connection:
                if connection.execute(webhook_secrets.update().where(mine).values(secret=made)).rowcount == 0:
                    connection.execute(webhook_secrets.insert().values(tenant=tenant, secret=made))
        except sa.exc.IntegrityError:  # two asked at once, and the other one was first
            return self.secret(tenant)
        return made

    def take(self, limit: int, seconds: float, *, but: Collection[str] = ()) -> list[Delivery]:
        """Messages that are due, but of these tenants. For so many seconds they are nobody else's; then due again."""
        with self._database.look() as connection:  # mostly there is none, and no writer has to wait for that answer
            if connection.scalar(sa.select(deliveries.c.id).limit(1)) is None:
                return []
        with self._database.write() as connection:
            now = self._database.now(connection)
            due = sa.select(deliveries.c.id).where(deliveries.c.not_before < now, deliveries.c.tenant.not_in(but))
            due = due.order_by(deliveries.c.tries, deliveries.c.not_before).limit(limit)
            ids = list(connection.scalars(self._database.locked(due, or_skipped=True)))
            taken = deliveries.update().where(deliveries.c.id.in_(ids))
            connection.execute(taken.values(not_before=now + seconds, tries=deliveries.c.tries + 1))
            columns = [deliveries.c[name] for name in Delivery.__dataclass_fields__]
            found = connection.execute(sa.select(*columns).where(deliveries.c.id.in_(ids))).mappings()
            return [Delivery(**row) for row in found]

    def done(self, message: Delivery) -> None:
        """Forget a message: it has arrived, or never will."""
        with self._database.write() as connection:
            connection.execute(deliveries.delete().where(deliveries.c.id == message.id))

    def later(self, message: Delivery, seconds: float) -> None:
        """Try a message again after so many seconds."""
        with self._database.write() as connection:
            again = {"not_before": self._database.now(connection) + seconds}
            connection.execute(deliveries.update().where(deliveries.c.id == message.id).values(again))

    def waiting(self) -> int:
        """How many messages are not delivered yet."""
        with self._database.look() as connection:
            return int(connection.scalar(sa.select(sa.func.count()).select_from(deliveries)) or 0)

    def watched(self) -> list[tuple[str, int]]:
        """Jobs whose checkpoints are to be told of, and how far their events have been read."""
        lately = sa.or_(jobs.c.status.not_in(statuses.ENDED), jobs.c.ended > time.time() - _WATCHED_SECONDS)
        query = sa.select(jobs.c.id, jobs.c.webhook_offset).where(jobs.c.webhook_offset >= 0, lately)
        with self._database.look() as connection:
            return [(row[0], int(row[1])) for row in connection.execute(query)]

    def saw(self, job_id: str, before: int, now: int, checkpoints: Sequence[events.Checkpoint]) -> None:
        """A job's events are read up to `now`; nothing happens if another server was faster."""
        same = sa.and_(jobs.c.id == job_id, jobs.c.webhook_offset == before)
        with self._database.write() as connection:
            moved = connection.execute(jobs.update().where(same).values(webhook_offset=now)).rowcount
            if moved and checkpoints:
                note(connection, [job_id], checkpoints)
