"""Extractions that go on behind their answer: asked for so, over the limit, cut off by a dying server, cancelled."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx
import pytest
from server_process import Server, until

from service.cli import main
from service.client import ServiceError

SMALL = {"layers": 3, "hidden": 192, "steps": 3}


def post(server: Server, prefer: str = "respond-async", **fields: Any) -> httpx.Response:
    return server.client._http.post("/v1/jobs", json={**SMALL, **fields}, headers={"Prefer": prefer} if prefer else {})


def slow(server: Server, *options: str) -> Server:
    """A server whose extractions wait for `cut`."""
    server.behave("worker", "wait on extract")
    return server.start(*options)


def test_a_preference_is_answered_at_once_and_the_job_queues_itself(server: Server):
    slow(server)
    answer = post(server)
    job = answer.json()
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "respond-async")
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["status"], job["student"], job["error"], job["queue"]) == ("extracting", None, None, None)
    until(server, job, "progress", part="score")
    progress = server.client.get(job["id"])["progress"]
    assert {name: progress[name] for name in ("part", "done", "total")} == {"part": "score", "done": 1, "total": 2}
    with pytest.raises(ServiceError) as refused:
        server.client.pause(job["id"])
    assert refused.value.status == 409
    server.behave("cut", "")
    done = server.client.wait(job["id"])
    assert (done["status"], done["student"]["layers"]) == ("succeeded", 3)
    became = [event["status"] for event in server.client.events(job["id"]) if event["type"] == "status"]
    assert became[-1] == "succeeded"


def test_an_extraction_over_the_limit_goes_on_behind_its_answer(server: Server):
    slow(server, "--respond-within", "0.2")
    answer = post(server, prefer="")
    assert (answer.status_code, answer.json()["status"]) == (202, "extracting")
    assert "preference-applied" not in answer.headers
    server.behave("cut", "")
    assert server.client.wait(answer.json()["id"])["status"] == "succeeded"
    assert post(server, prefer="").status_code == 201


def test_whoever_says_how_long_to_wait_is_answered_by_then(server: Server):
    slow(server)
    answer = post(server, prefer='respond-async, wait="0"')
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=0")
    server.behave("cut", "")
    server.client.wait(answer.json()["id"])
    assert post(server, prefer="wait=100").status_code == 201


def test_a_request_sent_twice_finds_the_job_that_is_extracted(server: Server):
    slow(server)
    job = server.client.create(SMALL, idempotency_key="k", background=True)
    again = server.client.create(SMALL, idempotency_key="k", background=True)
    assert (again["id"], again["status"]) == (job["id"], "extracting")
    server.behave("cut", "")
    assert server.client.create(SMALL, idempotency_key="k")["student"]["layers"] == 3


def test_requests_sent_again_wait_for_the_extraction_of_the_first(server: Server):
    slow(server)

    def ask() -> httpx.Response:
        return server.client._http.post("/v1/jobs", json=SMALL, headers={"Idempotency-Key": "k"})

    with ThreadPoolExecutor(10) as pool:  # one is extracted, eight wait for it, and for one there is no room
        asked = [pool.submit(ask) for _ in range(10)]
        refused = next(as_completed(asked)).result()
        assert (refused.status_code, refused.json()["code"]) == (409, "key_in_use")
        assert int(refused.headers["retry-after"]) > 0
        assert len(list((server.root / "data" / "jobs").iterdir())) <= 1, "whoever waits begins nothing"
        server.behave("cut", "")
        made = [one.result() for one in asked if one.result().status_code == 201]
    assert len({answer.json()["id"] for answer in made}) == 1
    assert [answer.headers.get("idempotent-replayed") for answer in made].count("true") == len(made) - 1 == 8


def test_the_client_waits_for_the_student_unless_told_otherwise(server: Server, capsys: pytest.CaptureFixture[str]):
    server.start("--respond-within", "0.01")
    made = server.client.create(SMALL)
    assert made["student"]["layers"] == 3
    assert main(["submit", "--layers", "3", "--hidden", "192", "--async", "--url", server.url]) == 0
    said = capsys.readouterr()
    assert "extracting" in said.err
    assert main(["watch", said.out.strip(), "--url", server.url]) == 0
    server.behave("worker", "die on extract")
    with pytest.raises(ServiceError, match="worker died"):
        server.client.create(SMALL)


def test_what_cannot_be_extracted_fails_with_its_code_and_can_be_retried(server: Server):
    server.start()
    job = server.client.wait(post(server, teacher="nobody/knows-this").json()["id"])
    assert (job["status"], job["error"]["code"], job["student"]) == ("failed", "bad_teacher", None)
    assert "nobody/knows-this" in job["error"]["message"]
    assert post(server, layers=7).status_code == 422, "what is known to be wrong is refused at once"
    server.behave("worker", "die on extract")
    job = server.client.wait(post(server).json()["id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "extraction_failed")
    server.behave("worker", "lie on extract")
    assert server.client.wait(post(server).json()["id"])["error"]["code"] == "internal"
    server.behave("worker", "")
    assert server.client.retry(job["id"])["status"] == "extracting"
    assert server.client.wait(job["id"])["status"] == "succeeded"


def test_cancelling_frees_the_worker_and_leaves_nothing_behind(server: Server):
    slow(server)
    job, waiting = post(server).json(), post(server).json()
    until(server, job, "progress")
    assert server.client.cancel(waiting["id"])["status"] == "cancelled"
    assert server.client.cancel(job["id"])["status"] == "cancelled"
    server.behave("worker", "")
    assert server.client.create(SMALL)["student"]["layers"] == 3
    for ended in (job, waiting):
        server.client.delete(ended["id"])
        assert not server.run(ended["id"]).exists()


def test_a_quota_counts_what_is_extracted(server: Server):
    slow(server, "--quota", "1")
    job = post(server).json()
    assert post(server).json()["code"] == "quota"
    server.client.cancel(job["id"])


def test_a_server_that_goes_answers_those_who_wait(server: Server):
    slow(server)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(post, server, "")
        while not list((server.root / "data" / "jobs").glob("*/events.jsonl")):
            threading.Event().wait(0.05)
        server.end()
        assert (asked.result().status_code, asked.result().json()["status"]) == (202, "extracting")
    server.behave("cut", "")
    server.start()
    assert server.client.wait(asked.result().json()["id"])["status"] == "succeeded"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_next_server_goes_on_with_it(server: Server, how: signal.Signals):
    slow(server, "--respond-within", "0.2")
    jobs = [post(server).json()]
    until(server, jobs[0], "progress")
    jobs.append(post(server, prefer="").json())
    server.end(how)
    server.behave("cut", "")
    server.start()
    for job in jobs:
        assert server.client.wait(job["id"])["status"] == "succeeded"


def test_another_server_takes_over_when_the_lease_has_ended(server: Server):
    slow(server, "--lease", "1")
    other = Server(server.root).start("--lease", "1")
    try:
        job = server.client.create(SMALL, background=True)
        until(server, job, "progress")
        server.end(signal.SIGKILL)
        server.behave("cut", "")
        assert other.client.wait(job["id"])["status"] == "succeeded"
    finally:
        other.end()
        other.client.close()
        server.start()
