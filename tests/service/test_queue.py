"""Workers, their slots, and which trainer carries which jobs under whose lease."""

from __future__ import annotations

import threading
import time

import pytest

from etd_ds.contract import errors, spec
from service.database import Database
from service.queue import CLUSTER, Outcome, Queue
from service.status import Verdict
from service.store import Job, Store


@pytest.fixture
def database(tmp_path):
    made = Database(f"sqlite:///{tmp_path / 'service.db'}")
    made.create()
    yield made
    made.close()


@pytest.fixture
def store(database):
    return Store(database)


@pytest.fixture
def queue(database):
    made = Queue(database)
    register(made, slots=2)
    return made


def register(queue, name="here", *, slots, host="host", lost_after=0.0):
    queue.register(name, host=host, count=slots, lost_after=lost_after)


def job(name, **fields):
    ranks = fields.pop("ranks", 1)
    made = spec.JobSpec(layers=1, hidden=12, gpus=ranks, **{"seed": fields.pop("seed", 0)})
    return Job(id=name, spec=made, ranks=ranks, created=time.time(), **fields)


def claim(queue, worker="here", lease=10.0, **options):
    """The ids of the jobs of a claimed trainer, none if there was nothing to claim."""
    found = queue.claim(worker, "me", lease, **options)
    return None if found is None else [one.id for one in found.jobs]


def settle(queue, trainer, status, code="", owner="me", **outcome):
    return queue.settle(trainer, owner, [Outcome(Verdict(status, "", code), **outcome) for _ in trainer.jobs])


def free(queue, worker="here"):
    return next(one.free for one in queue.workers() if one.name == worker)


def test_first_come_first_served_within_a_priority(store, queue):
    for name, priority in (("a", 0), ("b", 0), ("c", 5)):
        store.add(job(name, priority=priority))
    assert queue.line().places == {"c": 0, "a": 1, "b": 2}
    assert claim(queue) == ["c"]
    assert claim(queue) == ["a"]
    assert claim(queue) is None
    assert free(queue) == 0


def test_a_big_job_is_not_starved_by_small_ones(store, queue):
    store.add(job("small"))
    small = queue.claim("here", "me", 10)
    store.add(job("big", ranks=2))
    store.add(job("late"))
    assert claim(queue) is None
    settle(queue, small, "succeeded")
    assert claim(queue) == ["big"]
    assert queue.held("big") == (0, 1)


def test_a_job_that_no_worker_can_run_holds_up_no_other(store, queue):
    store.add(job("huge", ranks=4))
    store.add(job("small"))
    assert claim(queue) == ["small"]
    register(queue, "larger", slots=4)
    assert claim(queue, "larger") == ["huge"]


def test_tenants_take_turns(store, queue):
    register(queue, slots=4)
    for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
        store.add(job(name, tenant=name[0]))
    assert [claim(queue) for _ in range(4)] == [["a1"], ["b1"], ["c1"], ["a2"]]
    assert queue.line().places == {"b2": 0, "a3": 1}


def test_settling_needs_lease_and_attempt(store, queue):
    store.add(job("a"))
    claimed = queue.claim("here", "me", 10)
    assert (claimed.id, claimed.attempt) == ("a", 1)
    assert not settle(queue, claimed, "failed", "x", owner="another")
    assert settle(queue, claimed, "queued", "trainer_lost")
    again = queue.claim("here", "me", 10)
    assert (again.attempt, again.jobs[0].retries) == (2, 1)
    assert not settle(queue, claimed, "succeeded"), "an old attempt has no say"
    assert settle(queue, again, "failed", "code", message="why")
    ended = store.get("a")
    assert (ended.status, ended.error_code, ended.error_message, ended.worker) == ("failed", "code", "why", "")
    assert ended.ended is not None
    assert free(queue) == 2


def test_a_wish_that_comes_in_while_an_end_is_written_down_is_not_lost(store, queue):
    store.add(job("a"))
    claimed = queue.claim("here", "me", 10)
    assert store.ask("a", "cancel").wish == "cancel"
    assert not settle(queue, claimed, "queued", "trainer_lost"), "decided without knowing of the wish"
    [trainer] = queue.lease("here", "me", 10)
    assert trainer.jobs[0].wish == "cancel"
    assert settle(queue, trainer, "cancelled")


def test_a_lease_that_ran_out_goes_to_another_scheduler_of_the_worker(store, queue):
    register(queue, "there", slots=2)
    store.add(job("a"))
    queue.claim("here", "me", -1)
    assert queue.lease("there", "it", 100) == []
    assert [one.id for one in queue.lease("here", "you", 100)] == ["a"]
    assert queue.lease("here", "me", 100) == []
    queue.take_over("here", "me", 100)
    assert [one.id for one in queue.lease("here", "me", 100)] == ["a"]


def test_the_jobs_of_a_lost_worker_are_everybodys(store, queue):
    register(queue, "lost", slots=2, lost_after=50)
    store.add(job("a"))
    claimed = queue.claim("lost", "it", -40)
    assert queue.lost("me", 10) == [], "its lease is over, but it may come back"
    queue.take_over("lost", "it", -60)
    assert queue.lease("here", "me", 10) == []
    [trainer] = queue.lost("me", 10)
    assert (trainer.id, trainer.attempt) == ("a", 1)
    assert queue.lost("you", 10) == [], "one of all takes it"
    assert settle(queue, trainer, "queued", "trainer_lost")
    assert not settle(queue, claimed, "succeeded", owner="it")
    assert queue.lease("lost", "it", 10) == [], "what comes back finds that it has nothing"
    assert free(queue, "lost") == 2
    assert claim(queue) == ["a"]


def test_what_waits_for_its_worker_is_never_lost(store, queue):
    store.add(job("a"))
    queue.claim("here", "me", -1000)
    assert queue.lost("you", 10) == []


def test_a_worker_leaves_when_it_holds_nothing(store, queue):
    store.add(job("a"))
    claimed = queue.claim("here", "me", 10)
    assert not queue.leave("here")
    settle(queue, claimed, "queued", "stopped")
    assert queue.leave("here")
    assert queue.workers() == []
    assert queue.lease("here", "me", 10) is None, "one that lives has to register again"
    assert (store.get("a").retries, claim(queue)) == (0, None)


def test_a_worker_is_there_while_it_is_heard_of_and_takes_jobs(queue):
    assert [(one.name, one.slots, one.free, one.there) for one in queue.workers()] == [("here", 2, 2, True)]
    queue.lease("here", "me", 10, draining=True)
    assert not queue.workers()[0].there


def test_a_name_is_one_machines_and_a_database_of_one_kind(queue):
    register(queue, "a", slots=3, lost_after=300)
    register(queue, "a", slots=2, lost_after=300)
    with pytest.raises(errors.EtdError, match="wanted another name"):
        register(queue, "a", slots=3, host="other", lost_after=300)
    register(queue, slots=3, host="other")  # the embedded one: its host may have got another name
    with pytest.raises(errors.EtdError, match="one database for a Slurm cluster"):
        register(queue, CLUSTER, slots=3)


def test_back_off_holds_a_job_back(store, queue):
    store.add(job("a"))
    settle(queue, queue.claim("here", "me", 10), "queued", "trainer_lost", wait=1000)
    assert claim(queue) is None


def test_many_schedulers_never_claim_the_same_job_or_slot(store, queue):
    register(queue, slots=8)
    for number in range(8):
        store.add(job(f"j{number}"))
    claimed: list[str] = []

    def take(owner):
        while (found := queue.claim("here", owner, 60)) is not None:
            claimed.append(found.id)

    threads = [threading.Thread(target=take, args=(f"owner{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == [f"j{number}" for number in range(8)]
    assert sorted(slot for name in claimed for slot in queue.held(name)) == list(range(8))


def test_fewer_slots_wait_for_their_jobs(store, queue):
    store.add(job("a", ranks=2))
    claimed = queue.claim("here", "me", 10)
    register(queue, slots=1)
    assert queue.held("a") == (0, 1)
    settle(queue, claimed, "succeeded")
    register(queue, slots=1)
    assert free(queue) == 1


# ---- several jobs in one trainer


def test_jobs_that_agree_share_a_trainer_and_its_slots(store, queue):
    for name, options in (("a", {}), ("other-seed", {"seed": 1}), ("theirs", {"tenant": "t"}), ("b", {}), ("c", {})):
        store.add(job(name, **options))
    together = queue.claim("here", "me", 10, together=2)
    assert [(one.id, one.status, one.attempt, one.trainer) for one in together.jobs] == [
        ("a", "running", 1, "a:1"),
        ("b", "running", 1, "a:1"),
    ]
    assert (queue.held("a"), queue.held("b"), free(queue)) == ((0,), (), 1)
    assert claim(queue, together=2) == ["theirs"], "a tenant of two jobs on one slot uses one"
    outcomes = [Outcome(Verdict("succeeded")), Outcome(Verdict("queued", "", "stopped"))]
    assert queue.settle(together, "me", outcomes)
    assert [store.get(name).status for name in "ab"] == ["succeeded", "queued"]
    assert free(queue) == 1


def test_all_jobs_of_a_trainer_are_settled_or_none(store, queue):
    for name in "ab":
        store.add(job(name))
    together = queue.claim("here", "me", 10, together=2)
    store.ask("b", "pause")
    assert not settle(queue, together, "queued", "stopped")
    assert [store.get(name).status for name in "ab"] == ["running", "running"]
    assert free(queue) == 1


def test_only_what_stands_at_the_same_step_goes_together(store, queue):
    for name in "abc":
        store.add(job(name))
    settle(queue, queue.claim("here", "me", 10, together=2), "queued", "stopped")
    store.add(job("d"))
    assert claim(queue, together=4) == ["a", "b"], "they have a past in common, c and d have none"
    assert claim(queue, together=4) == ["c", "d"]


def test_what_failed_in_company_is_tried_alone(store, queue):
    for name in "ab":
        store.add(job(name))
    settle(queue, queue.claim("here", "me", 10, together=2), "queued", "apart")
    assert claim(queue, together=2) == ["a"]
    assert claim(queue, together=2) == ["b"]
    assert store.get("a").retries == 0
