"""How fast and how much one caller may ask."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import httpx
import pytest
from server_process import Server, until

from service.client import ServiceError
from service.limits import Limiter, Places

SMALL = {"layers": 3, "hidden": 192, "steps": 3}


def test_a_bucket_empties_and_fills():
    limiter = Limiter(60)
    assert [limiter.wait("a", 0.0) for _ in range(60)] == [0.0] * 60
    assert limiter.wait("a", 0.0) == pytest.approx(1.0)
    assert limiter.wait("b", 0.0) == 0.0
    assert limiter.wait("a", 0.5) == pytest.approx(0.5)
    assert limiter.wait("a", 1.0) == 0.0
    assert limiter.wait("a", 1.0) > 0
    assert [limiter.wait("a", 1000.0) for _ in range(61)].count(0.0) == 60


def test_no_limit():
    limiter = Limiter(0)
    assert not any(limiter.wait("a", 0.0) for _ in range(1000))


def test_places_are_each_tenants_own():
    places = Places(2)
    assert [places.take("a") for _ in range(3)] == [True, True, False]
    assert places.take("b")
    places.give_back("a")
    assert [places.take("a") for _ in range(2)] == [True, False]
    assert all(Places(0).take("a") for _ in range(1000))


def refused(call) -> ServiceError:
    with pytest.raises(ServiceError) as error:
        call()
    return error.value


def test_writes_are_limited_and_reads_are_not(server: Server):
    server.start("--rate", "2")
    for _ in range(2):
        assert refused(lambda: server.client.create({})).status == 422
    too_fast = refused(lambda: server.client.create({}))
    assert (too_fast.status, too_fast.problem["code"]) == (429, "too_fast")
    assert server.client.list() == []
    answer = server.client._http.post("/jobs", json={})
    assert 1 <= int(answer.headers["retry-after"]) <= 60


def test_a_tenant_has_so_many_unfinished_jobs(server: Server):
    server.start("--quota", "1")
    server.behave("trainer", "wait")
    job = server.client.create(SMALL)
    until(server, job, "step")
    full = refused(lambda: server.client.create(SMALL))
    assert (full.status, full.problem["code"]) == (429, "quota")
    server.behave("go", "")
    server.client.wait(job["id"])
    server.client.wait(server.client.create(SMALL)["id"])


def kept_alive(server: Server) -> int:
    """The server's connections on which the system asks, when they are silent, whether anybody is still there."""
    port = f"{httpx.URL(server.url).port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    # established, with the keepalive timer set
    return sum(row[1].endswith(f":{port}") and row[3] == "01" and row[5].startswith("02:") for row in rows)


def test_so_many_streams_may_be_open(server: Server):
    server.start("--streams", "2")
    server.behave("trainer", "wait")
    job = server.client.create(SMALL)
    watching, log = server.client.events(job["id"]), server.client.follow_log(job["id"])
    next(watching)
    next(log)
    assert kept_alive(server) >= 2, "readers that vanish without a word do not keep their places for ever"
    full = server.client._http.get(f"/jobs/{job['id']}/events")
    assert (full.status_code, full.json()["code"]) == (429, "too_many_streams")
    assert int(full.headers["retry-after"]) > 0
    assert refused(lambda: next(server.client.follow_log(job["id"]))).status == 429
    # what is answered at once is no stream
    assert server.client._http.get(f"/jobs/{job['id']}/events", headers={"Accept": "application/json"}).is_success
    assert server.client.log(job["id"])
    log.close()
    assert next(server.client.events(job["id"])), "whose reader has gone is closed, and a client waits for its place"
    server.behave("go", "")
    assert list(watching)[-1]["status"] == "succeeded"
    for _ in range(3):
        assert list(server.client.events(job["id"])), "one that has ended is closed"


def test_requests_at_the_same_time_do_not_pass_a_quota_together(server: Server):
    server.start("--quota", "2")
    server.behave("worker", "wait on extract")
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(server.client.create, SMALL) for _ in range(3)]
        first = next(as_completed(asked))
        assert first.exception().problem["code"] == "quota"
        server.behave("cut", "")
        assert [one.exception() is None for one in asked].count(True) == 2


def test_an_extraction_has_a_memory_limit(server: Server):
    server.start("--extraction-memory", str(200 << 20))
    server.behave("worker", "eat on extract")
    too_large = refused(lambda: server.client.create(SMALL))
    assert (too_large.status, too_large.problem["code"]) == (422, "extraction_too_large")
    server.behave("worker", "")
    server.client.wait(server.client.create(SMALL)["id"])
