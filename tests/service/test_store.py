"""Jobs and what is asked of them, in the database."""

from __future__ import annotations

import time

import postgres
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from etd_ds.contract import spec
from service.database import Database, metadata
from service.extractions import Extractions
from service.queue import Queue
from service.store import Job, Store, Taken


@pytest.fixture
def store(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'service.db'}")
    database.create()
    queue = Queue(database)
    queue.register("here", host="", count=1, lost_after=0.0)
    yield Store(database)
    database.close()


def job(name, **fields):
    ranks = fields.pop("ranks", 1)
    made = spec.JobSpec(layers=1, hidden=12, gpus=ranks)
    return Job(id=name, spec=made, ranks=ranks, created=time.time(), **fields)


def test_migrations_lead_to_the_tables_that_the_code_has(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'service.db'}")
    database.create()
    database.create()
    with database.look() as connection:
        there = MigrationContext.configure(connection)
        assert compare_metadata(there, metadata) == []
        assert there.get_current_revision() is not None
    database.close()


def test_a_job_comes_back_as_it_went_in(store):
    made = store.add(job("a", labels={"team": "x"}, priority=3, tenant="t"))
    assert store.get("a") == made
    assert (made.spec, made.labels, made.priority, made.status) == (job("a").spec, {"team": "x"}, 3, "queued")
    assert store.get("a", tenant="t") == made
    assert store.get("a", tenant="other") is None
    assert store.get("b") is None


def test_wishes(store):
    for name in "ab":
        store.add(job(name))
    assert store.ask("b", "cancel").status == "cancelled"
    assert store.ask("b", "pause") is None
    assert store.ask("b", "retry").status == "queued"
    assert store.ask("b", "pause").status == "paused"
    queue = Queue(store._database)
    assert queue.claim("here", "me", 10).id == "a"
    assert queue.claim("here", "me", 10) is None
    running = store.ask("a", "pause")
    assert (running.status, running.wish) == ("running", "pause")
    assert store.ask("a", "cancel").wish == "cancel"
    assert store.ask("a", "pause").wish == "cancel", "a cancel is not taken back"
    assert store.ask("a", "retry") is None
    assert store.ask("deleted", "cancel") is None


def test_a_request_key_is_used_once_a_tenant(store):
    store.add(job("a", tenant="t", request_key="k"))
    store.add(job("b", tenant="u", request_key="k"))
    with pytest.raises(Taken) as taken:
        store.add(job("c", tenant="t", request_key="k"))
    assert taken.value.job.id == "a"
    assert store.get("c") is None


@pytest.mark.skipif(postgres.missing(), reason="no PostgreSQL here")
def test_an_id_that_postgresql_cannot_hold_is_nobodys(postgres_url):
    database = Database(postgres_url)
    database.create()
    assert Store(database).get("job-\0", tenant="default") is None
    database.close()


def test_extractions_of_one_tenant_do_not_make_another_wait_for_all_of_them(store):
    for name, fields in (("a1", {}), ("a2", {}), ("b1", {}), ("b2", {}), ("a3", {"priority": 1})):
        store.add(job(name, tenant=name[0], status="extracting", **fields))
    extractions, last, order = Extractions(store._database, store), "", []
    while (taken := extractions.take("me", 60, last=last)) is not None:
        order.append(taken.id)
        last = taken.tenant
    assert order == ["a3", "b1", "a1", "b2", "a2"]
