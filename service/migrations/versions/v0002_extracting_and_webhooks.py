"""Jobs whose extraction goes on behind their answer, and webhooks with the messages that wait for delivery."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_BEFORE = ("queued", "running", "paused", "succeeded", "failed", "cancelled")


def upgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_constraint("known_status", type_="check")
        jobs.create_check_constraint("known_status", f"status in {('extracting', *_BEFORE)}")
        jobs.add_column(sa.Column("webhook", sa.Text, nullable=False, server_default=""))
        jobs.add_column(sa.Column("webhook_events", sa.Text, nullable=False, server_default=""))
        jobs.add_column(sa.Column("webhook_offset", sa.BigInteger, nullable=False, server_default="0"))
    op.create_table(
        "webhook_secrets",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("secret", sa.String(64), nullable=False),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("job", sa.String(40), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("not_before", sa.Float, nullable=False, index=True),
    )


def downgrade() -> None:
    for table in ("deliveries", "webhook_secrets"):
        op.drop_table(table)
    op.execute("update jobs set status = 'failed', error_code = 'extraction_failed' where status = 'extracting'")
    with op.batch_alter_table("jobs") as jobs:
        for column in ("webhook_offset", "webhook_events", "webhook"):
            jobs.drop_column(column)
        jobs.drop_constraint("known_status", type_="check")
        jobs.create_check_constraint("known_status", f"status in {_BEFORE}")
