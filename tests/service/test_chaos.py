"""Servers, supervisors and trainers are killed at random: no job is lost, none runs twice at once, every one ends.

The suite kills a few; `CHAOS_KILLS=200 CHAOS_SEED=1 pytest -s tests/service/test_chaos.py` kills more.
"""

from __future__ import annotations

import os
import random
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import postgres
import pytest
from server_process import DOUBLES, Server

from service.client import Client, ServiceError

KILLS = int(os.environ.get("CHAOS_KILLS", "40"))
JOBS, SERVER_KILLS = max(12, 60 * KILLS // 200), max(2, 6 * KILLS // 200)


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Flags of a server for this database: SQLite in its folder, or a PostgreSQL of our own on loopback."""
    if request.param == "sqlite":
        yield []
        return
    with postgres.running() as url:
        yield ["--database", url]


def victims(folder: Path) -> list[int]:
    """Living supervisors and trainers of this data folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            ours = b"service.executors.shim" in command or b"chaos_trainer" in command.split(b"--data-dir")[0]
            if ours and str(folder / "jobs").encode() in command:
                found.append(int(entry.name))
    return found


def create(servers: list[Server], number: int) -> str:
    """A job, whichever server takes it, however often they are killed meanwhile."""
    for attempt in range(200):
        server = servers[(number + attempt) % len(servers)]
        try:
            with Client(server.url, timeout=20) as client:
                spec = {"layers": 3, "hidden": 192, "seed": number}
                return str(client.create(spec, idempotency_key=f"job-{number}")["id"])
        except (httpx.TransportError, ServiceError):
            threading.Event().wait(0.1)
    raise AssertionError("no server took the job")


def kill(servers: list[Server], dice: random.Random) -> int:
    """Kill `KILLS` processes, now and then a server, which is started again; how many of them were servers."""
    kills = server_kills = 0
    while kills < KILLS:
        if kills >= (server_kills + 1) * KILLS // (SERVER_KILLS + 1):
            victim = dice.choice(servers)
            victim.end(signal.SIGKILL)
            victim.start()
            server_kills += 1
            kills += 1
        living = victims(servers[0].root / "data")
        for pid in dice.sample(living, min(len(living), dice.randrange(1, 4))):
            try:
                os.kill(pid, signal.SIGKILL)
                kills += 1
            except ProcessLookupError:
                continue
        threading.Event().wait(dice.uniform(0.0, 0.2))
    return server_kills


@pytest.mark.slow
@pytest.mark.parametrize(
    "database",
    ["sqlite", pytest.param("postgres", marks=pytest.mark.skipif(postgres.missing(), reason="no PostgreSQL here"))],
    indirect=True,
)
def test_nothing_is_lost_and_nothing_runs_twice(tmp_path: Path, database: list[str]) -> None:
    seed = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"CHAOS_SEED={seed}")
    dice = random.Random(seed)
    trainer = shlex.join((sys.executable, "-S", str(DOUBLES / "chaos_trainer.py")))
    options = ("--slots", "6", "--max-retries", "1000", "--retry-killed", "--backoff", "0", "--tick", "0.2",
               "--lease", "2", "--trainer-command", trainer, *database)  # fmt: skip
    servers = [Server(tmp_path, options).start(), Server(tmp_path, options).start()]
    ids: list[str] = []
    enough = threading.Event()

    def submit() -> None:
        while len(ids) < JOBS or not enough.is_set():
            ids.append(create(servers, len(ids)))

    submitting = threading.Thread(target=submit, daemon=True)
    submitting.start()
    try:
        server_kills = kill(servers, dice)
        enough.set()
        submitting.join()
        with Client(servers[0].url) as client:
            ended = [client.wait(job_id) for job_id in ids]
            listed = [job["id"] for job in client.list()]
            slots = client._http.get("/healthz").json()["slots"]
    finally:
        for server in servers:
            server.end()
            server.client.close()
    data = tmp_path / "data"
    assert {job["status"] for job in ended} == {"succeeded"}
    assert sorted(listed) == sorted(set(ids)), "none lost, none made twice"
    assert slots == {"total": 6, "free": 6}
    assert not list(data.glob("jobs/*/twice")), "two trainers were in one folder"
    for job_id in ids:
        steps = [int(line) for line in (data / "jobs" / job_id / "steps.txt").read_text().split()]
        assert sorted(set(steps)) == list(range(1, 16))
    assert victims(data) == []
    attempts = sum(job["attempt"] for job in ended)
    print(f"{KILLS} kills, {server_kills} of servers; {len(ids)} jobs, {attempts} attempts, all succeeded")
