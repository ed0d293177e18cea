"""Jobs that agree in all that students can share, trained by one trainer: a real server, trainers without maths."""

from __future__ import annotations

import pytest
from server_process import Server, until

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


def alive(server: Server, job: dict) -> bool:
    """Whether a supervisor was ever started for this very job."""
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
    assert [alive(server, job) for job in ended] == [True, False, True]
    assert ended[1]["log_tail"] == [f"etd-jobs: trained together with {first['id']}, whose log has what is printed"]
    for job in ended:
        assert steps(server, job) == [1, 2, 3, 4]
        assert server.client.pull(job["id"], server.root / job["id"])
    assert server.client._http.get("/healthz").json()["slots"] == {"total": 1, "free": 1}


@pytest.mark.parametrize("leaves", [0, 1])
def test_one_of_them_is_cancelled_and_the_others_go_on(server, busy, leaves):
    together = [server.client.create({**SMALL, "layers": layers}) for layers in (3, 2, 1)]
    leave(server, busy)
    for job in together:
        until(server, job, "step")
    metrics = server.client._http.get("/metrics").text
    assert 'etd_jobs{status="running"} 3' in metrics
    assert "etd_trainers 1" in metrics
    gone = together.pop(leaves)
    server.client.cancel(gone["id"])
    assert server.client.wait(gone["id"])["status"] == "cancelled"
    server.behave("go", "")
    ended = [server.client.wait(job["id"]) for job in together]
    assert [(job["status"], job["attempt"]) for job in ended] == [("succeeded", 2)] * 2
    assert [job["together_with"] for job in ended] == [None, together[0]["id"]]
    for job in together:
        assert steps(server, job) == [1, 2, 3, 4], "from the checkpoint that was written when the other left"
    assert server.client.retry(gone["id"])["status"] in ("queued", "running")
    assert server.client.wait(gone["id"])["status"] == "succeeded"
    assert steps(server, gone) == [1, 2, 3, 4]


def test_a_paused_one_goes_on_alone(server, busy):
    together = [server.client.create(SMALL) for _ in range(2)]
    leave(server, busy)
    until(server, together[1], "step")
    server.client.pause(together[1]["id"])
    for event in server.client.events(together[1]["id"]):
        if event["type"] == "status" and event["status"] == "paused":
            break
    server.behave("go", "")
    assert server.client.wait(together[0]["id"])["status"] == "succeeded"
    server.client.resume(together[1]["id"])
    assert server.client.wait(together[1]["id"])["status"] == "succeeded"
    assert [steps(server, job) for job in together] == [[1, 2, 3, 4]] * 2


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
