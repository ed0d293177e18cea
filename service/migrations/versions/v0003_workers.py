"""Workers with slots of their own; and which trainer carries a job, since one may carry several."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    workers = op.create_table(
        "workers",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("slots", sa.Integer, nullable=False),
        sa.Column("lost_after", sa.Float, nullable=False),
        sa.Column("seen", sa.Float, nullable=False),
        sa.Column("draining", sa.Boolean, nullable=False),
    )
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("worker", sa.String(64), nullable=False, server_default=""))
        jobs.add_column(sa.Column("trainer", sa.String(64), nullable=False, server_default=""))
        jobs.add_column(sa.Column("alike", sa.String(64), nullable=False, server_default=""))
        jobs.add_column(sa.Column("apart", sa.Boolean, nullable=False, server_default=sa.false()))
    op.execute("update jobs set trainer = id || ':' || attempt where attempt > 0")
    # what an older server ran belongs to a worker of this name: the embedded one, or one that will be missed
    op.execute("update jobs set worker = 'local' where status = 'running'")
    held = _rows("select id, job from slots")
    op.drop_table("slots")
    slots = op.create_table(
        "slots",
        sa.Column("worker", sa.String(64), sa.ForeignKey("workers.name"), primary_key=True),
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("job", sa.String(40), sa.ForeignKey("jobs.id"), index=True),
    )
    if held:
        local = {"name": "local", "host": "", "slots": len(held), "lost_after": 120.0, "seen": 0.0, "draining": False}
        op.bulk_insert(workers, [local])
        op.bulk_insert(slots, [{"worker": "local", **row} for row in held])


def downgrade() -> None:
    held = _rows("select id, job from slots where worker = 'local'")
    op.drop_table("slots")
    slots = op.create_table(
        "slots",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("job", sa.String(40), sa.ForeignKey("jobs.id"), index=True),
    )
    op.bulk_insert(slots, held)
    with op.batch_alter_table("jobs") as jobs:
        for column in ("apart", "alike", "trainer", "worker"):
            jobs.drop_column(column)
    op.drop_table("workers")


def _rows(query: str) -> list[dict[str, object]]:
    return [dict(row) for row in op.get_bind().execute(sa.text(query)).mappings()]
