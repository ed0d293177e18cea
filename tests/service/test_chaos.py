"""Servers, workers, supervisors and trainers are killed at random: no job is lost, none runs twice at once, all end.

The suite kills a few; `CHAOS_KILLS=200 CHAOS_SEED=1 pytest -s tests/service/test_chaos.py` kills more.
"""

from __future__ import annotations

import os
import random
import shlex
import signal
import sys
import threading
from pathlib import Path

import httpx
import postgres
import pytest
from server_process import DOUBLES, Server, slots
from worker_process import Worker

from service.client import Client, ServiceError

KILLS = int(os.environ.get("CHAOS_KILLS", "24"))
JOBS, SERVER_KILLS = max(12, 60 * KILLS // 200), max(2, 6 * KILLS // 200)


@pytest.fixture
def database(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database; empty for SQLite in the server's folder."""
    return request.getfixturevalue("postgres_url") if request.param == "postgres" else ""


def victims(folder: Path) -> dict[str, list[int]]:
    """Living supervisors and trainers of this data folder."""
    found: dict[str, list[int]] = {"supervisors": [], "trainers": []}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder / "jobs").encode() in command:
                if b"service.executors.shim" in command:
                    found["supervisors"].append(int(entry.name))
                elif b"chaos_trainer" in command.split(b"--data-dir")[0]:
                    found["trainers"].append(int(entry.name))
    return found


def create(servers: list[Server], number: int) -> str:
    """A job, whichever server takes it, however often they are killed meanwhile."""
    for attempt in range(200):
        server = servers[(number + attempt) % len(servers)]
        try:
            with Client(server.url, timeout=20) as client:
                spec = {"layers": 3, "hidden": 192, "seed": number // 4}
                return str(client.create(spec, idempotency_key=f"job-{number}")["id"])
        except (httpx.TransportError, ServiceError):
            threading.Event().wait(0.1)
    raise AssertionError("no server took the job")


def kill(servers: list[Server], workers: list[Worker], dice: random.Random) -> int:
    """Kill `KILLS` processes, now and then a server or a worker's whole machine, which are started again.

    How many of those there were.
    """
    kills = server_kills = 0
    killed: set[int] = set()
    while kills < KILLS:
        if kills >= (server_kills + 1) * KILLS // (SERVER_KILLS + 1):
            victim = dice.choice([*servers, *workers])
            if isinstance(victim, Worker) and dice.random() < 0.5:
                kills += len(victim.signal_all(signal.SIGKILL)) - 1
            victim.end(signal.SIGKILL)
            victim.start()
            server_kills += 1
            kills += 1
        there = victims(servers[0].root / "data")
        # most supervisors that are seen are about to begin: a kill of those costs no attempt
        living = dice.choice([there["trainers"], [*there["supervisors"], *there["trainers"]]])
        living = [pid for pid in living if pid not in killed]  # on a busy machine the killed take a while to go
        for pid in dice.sample(living, min(len(living), dice.randrange(1, 4))):
            try:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
                kills += 1
            except ProcessLookupError:
                continue
        threading.Event().wait(dice.uniform(0.0, 0.2))
    return server_kills


NEEDS_POSTGRES = pytest.mark.skipif(postgres.missing(), reason="no PostgreSQL here: apt-get install postgresql")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("database", "names"),
    [
        ("sqlite", ()),
        pytest.param("postgres", (), marks=NEEDS_POSTGRES),
        pytest.param("postgres", ("a", "b"), marks=NEEDS_POSTGRES),
    ],
    ids=["sqlite", "postgres", "workers"],
    indirect=["database"],
)
def test_nothing_is_lost_and_nothing_runs_twice(tmp_path: Path, database: str, names: tuple[str, ...]) -> None:
    """Two servers that run jobs themselves; or two that do not and two workers, with jobs that are trained together."""
    seed = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"CHAOS_SEED={seed}")
    dice = random.Random(seed)
    trainer = shlex.join((sys.executable, "-S", str(DOUBLES / "chaos_trainer.py")))
    options = ("--slots", "2" if names else "6", "--max-retries", "1000", "--retry-killed", "--backoff", "0",
               "--tick", "0.2", "--lease", "2", "--trainer-command", trainer)  # fmt: skip
    serving = (*options, *(("--database", database) if database else ()), *(("--no-executor",) if names else ()))
    servers = [Server(tmp_path, serving).start(), Server(tmp_path, serving).start()]
    working = (*options, "--together", "3", "--lost-after", "4")
    workers = [Worker(servers[0], database, name, working).start() for name in names]
    ids: list[str] = []
    enough = threading.Event()

    def submit() -> None:
        while len(ids) < JOBS or not enough.is_set():
            ids.append(create(servers, len(ids)))

    submitting = threading.Thread(target=submit, daemon=True)
    submitting.start()
    try:
        server_kills = kill(servers, workers, dice)
        enough.set()
        submitting.join()
        with Client(servers[0].url) as client:
            ended = [client.wait(job_id) for job_id in ids]
            listed = [job["id"] for job in client.list()]
            left = slots(client)
    finally:
        for process in (*workers, *servers):
            process.end()
        for server in servers:
            server.client.close()
    data = tmp_path / "data"
    assert {job["status"] for job in ended} == {"succeeded"}
    assert sorted(listed) == sorted(set(ids)), "none lost, none made twice"
    total = 2 * len(names) or 6
    assert left == {"free": total, "used": 0}
    assert not list(data.glob("jobs/*/twice")), "two trainers were in one folder"
    for job_id in ids:
        steps = [int(line) for line in (data / "jobs" / job_id / "steps.txt").read_text().split()]
        assert sorted(set(steps)) == list(range(1, 16))
    assert not any(victims(data).values())
    attempts = sum(job["attempt"] for job in ended)
    together = sum(job["together_with"] is not None for job in ended)
    assert names or not together
    print(
        f"{KILLS} kills, {server_kills} times a server or a worker's machine; {len(ids)} jobs, {attempts} attempts, "
        f"{together} in another's trainer, all succeeded"
    )
