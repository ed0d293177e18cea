"""Jobs and slots in the database."""

from __future__ import annotations

import threading
import time

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from etd_ds.contract import spec
from service.database import Database, metadata
from service.status import Verdict
from service.store import Job, Store, Taken


@pytest.fixture
def store(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'service.db'}")
    database.create()
    made = Store(database)
    made.set_slots(2)
    yield made
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


def test_first_come_first_served_within_a_priority(store):
    for name, priority in (("a", 0), ("b", 0), ("c", 5)):
        store.add(job(name, priority=priority))
    assert [store.ahead_of(store.get(name)) for name in "abc"] == [1, 2, 0]
    assert store.claim("me", 10).id == "c"
    assert store.claim("me", 10).id == "a"
    assert store.claim("me", 10) is None
    assert store.free_slots() == 0


def test_a_big_job_is_not_starved_by_small_ones(store):
    store.add(job("small"))
    store.claim("me", 10)
    store.add(job("big", ranks=2))
    store.add(job("late"))
    assert store.claim("me", 10) is None
    store.settle(store.get("small"), "me", Verdict("succeeded"))
    assert store.claim("me", 10).id == "big"
    assert store.held("big") == (0, 1)


def test_tenants_take_turns(store):
    store.set_slots(4)
    for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
        store.add(job(name, tenant=name[0]))
    assert [store.claim("me", 10).id for _ in range(4)] == ["a1", "b1", "c1", "a2"]
    assert [store.ahead_of(store.get(name)) for name in ("b2", "a3")] == [0, 1]


def test_settling_needs_lease_and_attempt(store):
    store.add(job("a"))
    claimed = store.claim("me", 10)
    assert claimed.attempt == 1
    assert not store.settle(claimed, "another", Verdict("failed", "", "x"))
    assert store.settle(claimed, "me", Verdict("queued", "", "trainer_lost"))
    again = store.claim("me", 10)
    assert (again.attempt, again.retries) == (2, 1)
    assert not store.settle(claimed, "me", Verdict("succeeded")), "an old attempt has no say"
    assert store.settle(again, "me", Verdict("failed", "", "code"), message="why")
    ended = store.get("a")
    assert (ended.status, ended.error_code, ended.error_message) == ("failed", "code", "why")
    assert ended.ended is not None
    assert store.free_slots() == 2


def test_a_lease_that_ran_out_goes_to_another_scheduler(store):
    store.add(job("a"))
    store.claim("me", -1)
    assert [one.id for one in store.lease("you", 100)] == ["a"]
    assert store.lease("me", 100) == []


def test_back_off_holds_a_job_back(store):
    store.add(job("a"))
    store.settle(store.claim("me", 10), "me", Verdict("queued", "", "trainer_lost"), wait=1000)
    assert store.claim("me", 10) is None


def test_wishes(store):
    for name in "ab":
        store.add(job(name))
    assert store.ask("b", "cancel").status == "cancelled"
    assert store.ask("b", "pause") is None
    assert store.ask("b", "retry").status == "queued"
    assert store.ask("b", "pause").status == "paused"
    assert store.claim("me", 10).id == "a"
    assert store.claim("me", 10) is None
    running = store.ask("a", "pause")
    assert (running.status, running.wish) == ("running", "pause")
    assert store.ask("a", "cancel").wish == "cancel"
    assert store.ask("a", "pause").wish == "cancel", "a cancel is not taken back"
    assert store.ask("a", "retry") is None


def test_a_request_key_is_used_once_a_tenant(store):
    store.add(job("a", tenant="t", request_key="k"))
    store.add(job("b", tenant="u", request_key="k"))
    with pytest.raises(Taken) as taken:
        store.add(job("c", tenant="t", request_key="k"))
    assert taken.value.job.id == "a"
    assert store.get("c") is None


def test_many_schedulers_never_claim_the_same_job_or_slot(store):
    store.set_slots(8)
    for number in range(8):
        store.add(job(f"j{number}"))
    claimed: list[str] = []

    def claim(owner):
        while (found := store.claim(owner, 60)) is not None:
            claimed.append(found.id)

    threads = [threading.Thread(target=claim, args=(f"owner{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == [f"j{number}" for number in range(8)]
    assert sorted(slot for name in claimed for slot in store.held(name)) == list(range(8))


def test_fewer_slots_wait_for_their_jobs(store):
    store.add(job("a", ranks=2))
    claimed = store.claim("me", 10)
    store.set_slots(1)
    assert store.held("a") == (0, 1)
    store.settle(claimed, "me", Verdict("succeeded"))
    store.set_slots(1)
    assert store.free_slots() == 1
