"""Jobs that agree in all that students can share, trained by one trainer: a real server, trainers without maths."""

from __future__ import annotations

import pytest
from server_process import Server, slots, until

SMALL = {"layers": 3, "hidden": 192, "steps": 4}


@pytest.fixture
def busy(server: Server) -> dict:
    """A job that has the only slot until it is told to go; what is posted meanwhile waits together."""
    server.start("--slots", "1", "--together", "3")
    server.behave("trainer", "wait")
    job = server.client.create({**SMALL, "seed": 9})
    until(server, job, "step")
    return job


def steps(server: Server, job: dict) -> list[int]:
    return [event["step"] for event in server.client.events(job["id"]) if event["type"] == "step"]


def supervised(server: Server, job: dict) -> bool:
    """Whether a supervisor was started for this very job."""
    return (server.run(job["id"]) / "supervisor").exists()


def leave(server: Server, busy: dict) -> None:
    server.client.cancel(busy["id"])
    server.client.wait(busy["id"])


def test_jobs_that_agree_share_one_trainer_and_each_gives_its_student(server, busy):
    first = server.client.create(SMALL)
    other = server.client.create({**SMALL, "seed": 1})
    second = server.client.create({**SMALL, "layers": 2, "learning_rate": 0.01})
    server.behave("go", "")
    ended = [server.client.wait(job["id"]) for job in (first, second, other)]
    assert [(job["status"], job["attempt"]) for job in ended] == [("succeeded", 1)] * 3
    assert [job["together_with"] for job in ended] == [None, first["id"], None]
    assert [supervised(server, job) for job in ended] == [True, False, True]
    said = f"etd-jobs: attempt 1 together with {first['id']}, whose log has what is printed"
    assert ended[1]["log_tail"] == [said]
    for job in ended:
        assert steps(server, job) == [1, 2, 3, 4]
        assert server.client.pull(job["id"], server.root / job["id"])
    assert slots(server.client) == {"free": 1, "used": 0}


def test_one_of_them_leaves_and_the_others_go_on(server, busy):
    first, second, third = together = [server.client.create({**SMALL, "layers": layers}) for layers in (3, 2, 1)]
    leave(server, busy)
    for job in together:
        until(server, job, "step")
    metrics = server.client._http.get("/metrics").text
    assert 'etd_jobs{status="running"} 3' in metrics
    assert "etd_trainers 1" in metrics
    server.client.cancel(first["id"])
    assert server.client.wait(first["id"])["status"] == "cancelled"
    until(server, second, "step", step=2)
    assert server.client.get(third["id"])["together_with"] == second["id"], "those that are left go on together"
    server.client.pause(third["id"])
    until(server, second, "step", step=3)
    assert server.client.get(third["id"])["status"] == "paused"
    server.behave("go", "")
    assert server.client.wait(second["id"])["status"] == "succeeded"
    server.client.resume(third["id"])
    server.client.retry(first["id"])
    for job in together:
        assert server.client.wait(job["id"])["status"] == "succeeded"
        assert steps(server, job) == [1, 2, 3, 4], "each time from the checkpoint that was written at leaving"
    assert [server.client.get(job["id"])["attempt"] for job in together] == [2, 3, 3]


def test_one_that_fails_takes_no_other_with_it(server, busy):
    good = server.client.create(SMALL)
    bad = server.client.create({**SMALL, "learning_rate": 1.0})
    server.behave("trainer", "picky")
    server.client.cancel(busy["id"])
    ended = server.client.wait(bad["id"])
    assert (ended["status"], ended["error"]["code"]) == ("failed", "trainer_crashed")
    assert "RuntimeError: the loss is NaN" in ended["log_tail"]
    ended = server.client.wait(good["id"])
    assert (ended["status"], ended["attempt"]) == ("succeeded", 2)
