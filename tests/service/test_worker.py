"""Workers apart from the server: one real PostgreSQL, real processes, trainers without maths."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import postgres
import psutil
import pytest
from safetensors.numpy import load_file
from server_process import Server, slots, until
from worker_process import Worker

from service.cli import main
from service.database import Database
from service.queue import Queue

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(postgres.missing(), reason="no PostgreSQL here: apt-get install postgresql"),
]
SMALL = {"layers": 3, "hidden": 192, "steps": 4}


@pytest.fixture
def api(server: Server, postgres_url: str) -> Server:
    """A server that runs nothing itself."""
    server.options = ("--database", postgres_url, "--no-executor", "--tick", "0.1", "--lease", "1")
    return server.start()


@pytest.fixture
def workers(api: Server, postgres_url: str) -> Iterator[tuple[Worker, Worker]]:
    """Two workers, not started yet."""
    made = Worker(api, postgres_url, "a"), Worker(api, postgres_url, "b")
    yield made
    for worker in made:
        if worker.process is not None and worker.process.poll() is None:
            worker.end()


def at_step(api: Server, how: str = "wait") -> dict:
    """A job that one of the workers trains, and that stays where it is until told to go."""
    api.behave("trainer", how)
    job = api.client.create(SMALL)
    until(api, job, "step")
    return api.client.get(job["id"])


def go(api: Server) -> None:
    api.behave("go", "")


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def steps(api: Server, job: dict) -> list[int]:
    return [event["step"] for event in api.client.events(job["id"]) if event["type"] == "step"]


def test_a_machine_that_goes_down_loses_no_job(api, workers):
    a, b = workers
    a.start()
    job = at_step(api)
    assert job["worker"] == "a"
    a.signal_all(signal.SIGKILL)
    go(api)
    b.start()
    done = api.client.wait(job["id"])
    assert (done["status"], done["attempt"]) == ("succeeded", 2)
    assert steps(api, job) == [1, 2, 3, 4], "it went on from its checkpoint"


def test_without_its_worker_a_trainer_leaves_before_another_begins(api, workers):
    a, b = (worker.start() for worker in workers)
    job = at_step(api)
    first, other = (a, b) if job["worker"] == "a" else (b, a)
    trainers = first.everything()[1:]
    first.end(signal.SIGKILL)
    assert any(lives(one) for one in trainers), "killing a worker kills no trainer"
    again = until(api, job, "attempt", step=1)
    assert [event["outcome"] for event in _before(api, job, again) if event["type"] == "end"] == ["stopped"]
    assert api.client.get(job["id"])["worker"] == other.name
    assert not any(lives(one) for one in trainers)
    go(api)
    assert api.client.wait(job["id"])["status"] == "succeeded"
    assert steps(api, job) == [1, 2, 3, 4]


def test_a_restarted_worker_finds_its_jobs_again(api, workers):
    a, b = (worker.start("--lost-after", "300") for worker in workers)
    job = at_step(api)
    mine = a if job["worker"] == "a" else b
    mine.end(signal.SIGKILL)
    mine.start("--lost-after", "300")
    go(api)
    done = api.client.wait(job["id"])
    assert (done["status"], done["attempt"]) == ("succeeded", 1)


def test_a_worker_that_is_asked_to_go_hands_its_jobs_back(api, workers):
    a, b = workers
    api.behave("trainer", "deaf")
    job = api.client.create(SMALL)
    assert job["queue"] == {"position": 1, "reason": "no worker is there"}
    a.start("--grace", "0.5", "--max-retries", "0")
    until(api, job, "step")
    refused = api.client._http.post("/v1/jobs", json={**SMALL, "gpus": 2})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "gpus")
    assert a.end(signal.SIGTERM) == 0, "it has what does not listen killed, which costs the job no try"
    waiting = api.client.get(job["id"])
    assert (waiting["status"], waiting["queue"]["reason"]) == ("queued", "no worker is there")
    go(api)
    b.start()
    done = api.client.wait(job["id"])
    assert (done["status"], done["attempt"], done["worker"]) == ("succeeded", 2, None)
    assert steps(api, job) == [1, 2, 3, 4]
    assert slots(api.client) == {"free": 1, "used": 0}
    assert 'etd_workers{state="there"} 1' in api.client._http.get("/metrics").text


def test_a_machine_that_comes_back_too_late_finds_its_trainer_fenced_off(api, workers, postgres_url):
    """All of it stands still, as a machine that sleeps, or one that is cut off; meanwhile its job moves on."""
    a, b = workers
    a.start()
    job = at_step(api)
    asleep = a.signal_all(signal.SIGSTOP)
    b.start()
    queue = Queue(Database(postgres_url))
    while api.client.get(job["id"])["worker"] != "b":
        time.sleep(0.05)
    assert [one.slots - one.free for one in queue.workers()] == [0, 1]
    go(api)
    for one in asleep:
        one.send_signal(signal.SIGCONT)
    done = api.client.wait(job["id"])
    assert (done["status"], done["attempt"]) == ("succeeded", 2)
    found = steps(api, job)
    assert found == sorted(found), "the old trainer wrote nothing after the new one began"
    assert not any(lives(one) for one in asleep[1:]), "what it had is ended"


def test_two_students_of_one_real_trainer(server, postgres_url, tmp_path):
    """Two POSTs, extracted by the server, distilled by one trainer of a worker elsewhere, downloaded and loaded."""
    text = tmp_path / "text.txt"
    text.write_text(
        "\n\n".join(f"Sentence {number} is about small encoders and what they keep." for number in range(80))
    )
    data = ["--data-dir", str(tmp_path / "data"), "--cache", str(server.cache), "--database", postgres_url]
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--no-executor", *data]
    server.launch([*command, "--corpus", f"small={text}"])
    wanted = {"hidden": 192, "mode": "rand", "corpus": "small", "seq_length": 32, "batch_size": 4, "steps": 2,
              "validation_sequences": 2, "log_every": 1}  # fmt: skip
    made = [server.client.create({**wanted, "layers": layers}) for layers in (3, 2)]
    worker = Worker(server, postgres_url, "a", ("--together", "2", "--lost-after", "300"), double=False).start()
    ended = [server.client.wait(job["id"]) for job in made]
    worker.end()
    assert [job["status"] for job in ended] == ["succeeded"] * 2, [job["log_tail"] for job in ended]
    assert [job["together_with"] for job in ended] == [None, made[0]["id"]]
    for job, layers in zip(ended, (3, 2), strict=True):
        assert steps(server, job) == [1, 2]
        server.client.pull(job["id"], tmp_path / job["id"])
        loaded = load_file(tmp_path / job["id"] / "model.safetensors")
        assert loaded["embeddings.word_embeddings.weight"].shape[1] == 192
        assert {int(name.split(".")[2]) for name in loaded if name.startswith("encoder.layer.")} == set(range(layers))
    log = (server.run(made[0]["id"]) / "log.txt").read_text()
    assert log.count("start-up took") == 1, "one trainer"
    assert all(f"{job['id']}/student is ready" in log for job in made)


def test_sqlite_is_refused_since_it_is_for_one_machine(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ETD_JOBS_DATABASE", raising=False)
    assert main(["worker", "--data-dir", str(tmp_path)]) == 2
    assert "SQLite is for one machine" in capsys.readouterr().err
    assert main(["serve", "--no-executor", "--data-dir", str(tmp_path)]) == 2
    assert "--no-executor: wanted --database postgresql" in capsys.readouterr().err
    assert not list(Path(tmp_path).iterdir())


def test_a_folder_that_is_no_servers_and_a_database_that_is_away_are_refused(tmp_path, capsys):
    url = "postgresql+psycopg://etd:secret@127.0.0.1:9/none"
    assert main(["worker", "--data-dir", str(tmp_path), "--database", url]) == 2
    assert "is the shared folder mounted" in capsys.readouterr().err
    (tmp_path / "server.lock").touch()
    assert main(["worker", "--data-dir", str(tmp_path), "--database", url]) == 2
    said = capsys.readouterr().err
    assert "--database: wanted one that answers" in said
    assert "secret" not in said


def _before(api: Server, job: dict, last: dict) -> list[dict]:
    found = api.client._http.get(job["events"], headers={"Accept": "application/json"}).json()["data"]
    return [event for event in found if event["id"] < last["id"]]
