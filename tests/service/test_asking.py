"""Lists, labels, priorities, and what one can ask of jobs: over HTTP against a real server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from server_process import Server, slots, until

from service.client import ServiceError

SMALL = {"layers": 3, "hidden": 192, "steps": 3}


def held(server: Server, *jobs):
    """A server with one slot whose first job waits, so that all later ones stay queued."""
    server.start("--slots", "1")
    server.behave("trainer", "wait")
    first = server.client.create(SMALL)
    until(server, first, "step")
    return first, [server.client.create(SMALL | one) for one in jobs]


def test_lists_are_filtered_and_turn_pages(server):
    first, others = held(
        server,
        {"labels": {"team": "a", "use": "search"}},
        {"labels": {"team": "b"}},
        {"labels": {"team": "a"}},
        {"labels": {'q"': '", "team": "a'}},
    )
    newest_first = [job["id"] for job in reversed([first, *others])]
    client = server.client
    assert [job["id"] for job in client.list(limit=2)] == newest_first
    page = client.page(limit=2)
    assert [job["id"] for job in page["data"]] == newest_first[:2]
    assert [job["id"] for job in client.page(limit=3, after=page["next"])["data"]] == newest_first[2:]
    assert client.page(limit=3, after=page["next"])["next"] is None
    assert [job["id"] for job in client.list(label="team:a")] == [others[2]["id"], others[0]["id"]]
    assert [job["id"] for job in client.list(label=["team:a", "use:search"])] == [others[0]["id"]]
    assert [job["id"] for job in client.list(status="running")] == [first["id"]]
    assert len(client.list(status=["running", "queued"])) == 5
    for bad in ({"limit": 0}, {"status": "odd"}, {"label": "team"}):
        with pytest.raises(ServiceError) as refused:
            client.list(**bad)
        assert refused.value.status == 422
        assert refused.value.fields


def test_higher_priorities_go_first(server):
    first, (low, high) = held(server, {}, {"priority": 5})
    assert (low["queue"]["position"], high["queue"]["position"]) == (1, 1)
    assert server.client.get(low["id"])["queue"] == {"position": 2, "reason": "1 job before it"}
    server.behave("go", "")
    for job in (first, low, high):
        server.client.wait(job["id"])
    started = {job["id"]: job["started"] for job in server.client.list()}
    assert started[high["id"]] < started[low["id"]]


def test_a_request_sent_twice_makes_one_job(server):
    server.start()
    job = server.client.create(SMALL, idempotency_key="k1")
    assert server.client.create(SMALL, idempotency_key="k1")["id"] == job["id"]
    with pytest.raises(ServiceError) as refused:
        server.client.create(SMALL | {"seed": 1}, idempotency_key="k1")
    assert (refused.value.status, refused.value.problem["code"]) == (409, "key_reused")

    def post(_):
        return httpx.post(f"{server.url}/jobs", json=SMALL, headers={"Idempotency-Key": "k2"}, timeout=60).json()["id"]

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(post, range(4)))) == 1
    assert len(server.client.list()) == 2
    assert len(list((server.root / "data" / "jobs").iterdir())) == 2


def test_pause_frees_the_slot_and_resume_continues(server):
    first, (second,) = held(server, {})
    assert server.client.pause(second["id"])["status"] == "paused"
    server.client.pause(first["id"])
    until(server, first, "status", status="paused")
    assert slots(server.client) == {"free": 1, "used": 0}
    with pytest.raises(ServiceError, match="cannot be asked to retry"):
        server.client.retry(first["id"])
    server.behave("trainer", "")
    server.client.resume(first["id"])
    done = server.client.wait(first["id"])
    assert (done["status"], done["attempt"]) == ("succeeded", 2)
    steps = [event["step"] for event in server.client.events(first["id"]) if event["type"] == "step"]
    assert steps == [1, 2, 3]
    assert server.client.cancel(second["id"])["status"] == "cancelled"


def test_retry_gives_a_failed_job_another_chance(server):
    server.start()
    server.behave("trainer", "crash")
    job = server.client.wait(server.client.create(SMALL)["id"])
    assert job["status"] == "failed"
    server.behave("trainer", "")
    again = server.client.retry(job["id"])
    assert (again["error"], again["ended"]) == (None, None)
    assert server.client.wait(job["id"])["status"] == "succeeded"
    with pytest.raises(ServiceError) as refused:
        server.client.retry(job["id"])
    assert refused.value.status == 409


def test_delete_forgets_what_has_ended(server):
    first, (second,) = held(server, {})
    for job in (first, second):
        with pytest.raises(ServiceError) as refused:
            server.client.delete(job["id"])
        assert refused.value.status == 409
    server.behave("go", "")
    for job in (first, second):
        server.client.wait(job["id"])
        server.client.delete(job["id"])
        assert not server.run(job["id"]).exists()
    assert server.client.list() == []
    assert list((server.root / "data" / "incoming").iterdir()) == []
    with pytest.raises(ServiceError) as gone:
        server.client.get(first["id"])
    assert gone.value.status == 404


def test_log_and_checkpoints(server):
    first, _ = held(server)
    following = server.client.follow_log(first["id"], lines=1)
    assert next(following) == "step 1"
    server.behave("go", "")
    assert list(following) == ["step 2", "step 3"]
    assert server.client.log(first["id"], 2) == "step 2\nstep 3\n"
    found = server.client.checkpoints(first["id"])
    assert [(one["name"], one["kept"]) for one in found] == [("step-1", False), ("step-2", False), ("step-3", True)]
    assert found[-1]["validation_loss"] == 0.5
