"""Each step of the tables' history keeps what older servers wrote."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from service import database
from service.database import Database

OLD_JOB = """insert into jobs (id, tenant, status, wish, spec, labels, priority, ranks, attempt, retries, not_before,
    created, error_code, error_message, lease_owner, lease_until, request_hash)
    values ('old', 't', 'running', '', '{}', '{}', 0, 1, 1, 0, 0, 1.5, '', '', 'me', 2.5, '')"""


def test_a_running_job_and_its_slot_outlive_an_upgrade(tmp_path):
    old = Database(f"sqlite:///{tmp_path / 'service.db'}")
    config = Config()
    config.set_main_option("script_location", str(database._MIGRATIONS))
    with old.write() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(sa.text(OLD_JOB))
        connection.execute(sa.text("insert into slots values (0, 'old')"))
    old.create()
    with old.write() as connection:
        row = connection.execute(sa.select(database.jobs)).mappings().one()
        assert (row["id"], row["status"], row["lease_owner"], row["webhook"]) == ("old", "running", "me", "")
        slot = connection.execute(sa.select(database.slots)).mappings().one()
        assert (slot["worker"], slot["id"], slot["job"]) == ("local", 0, "old")
        assert (row["worker"], row["trainer"]) == ("local", "old:1"), "which the embedded server looks after as before"
        assert connection.scalar(sa.text("pragma foreign_keys")) == 1
        assert connection.execute(sa.text("pragma foreign_key_check")).all() == []
        connection.execute(database.jobs.update().values(status="extracting"))
    old.close()
