"""Jobs whose checkpoints are told of are found without looking at all others: theirs alone is not -1."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_index("ix_jobs_webhook_offset", "jobs", ["webhook_offset"])
    op.execute("update jobs set webhook_offset = -1 where webhook_events not like '%checkpoint%'")


def downgrade() -> None:
    op.execute("update jobs set webhook_offset = 0 where webhook_offset = -1")
    op.drop_index("ix_jobs_webhook_offset", "jobs")
