"""The Slurm executor on a real Slurm: real server, controller and node daemons; trainers without maths."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest
import slurm_cluster
from server_process import DOUBLES, Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing()),
]

SMALL = {"layers": 3, "hidden": 192, "steps": 3, "nodes": 2, "gpus": 2, "batch_size": 4}
REAL = SMALL | {
    **{"gpus": 1, "batch_size": 4, "steps": 40, "seq_length": 64, "mode": "rand", "corpus": "small"},
    **{"validation_sequences": 4, "validate_every": 40, "checkpoint_every": 40, "log_every": 1},
}
OPTIONS = (
    *("--slurm", "--slurm-nodes", "2", "--slurm-gpus-per-node", "2", "--slurm-poll", "0.2", "--slurm-settle", "0.5"),
    *("--slurm-line", "export MASTER_ADDR=127.0.0.1"),
    *("--trainer-command", f"{sys.executable} {DOUBLES / 'slurm_rank.py'}"),
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = slurm_cluster.Cluster(tmp_path_factory.mktemp("slurm") / "lab")
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def server(cluster, tmp_path, monkeypatch):
    """A server whose data folder has a name that is hard on shells."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    root = tmp_path / "it's a %j"
    root.mkdir()
    made = Server(root, OPTIONS)
    yield made
    cluster.start()
    if made.process is not None and made.process.poll() is None:
        for job in made.client.list():
            made.client.cancel(job["id"])
        made.end()
    made.client.close()


def ranks(server, job, count=4):
    return [json.loads((server.cache / f"rank-{job['id']}-{number}").read_text()) for number in range(count)]


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def processes_of(job):
    """Living processes that have the job's id in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and lives(entry.name):
            try:
                found += [entry.name] if job["id"].encode() in (entry / "cmdline").read_bytes() else []
            except OSError:
                continue
    return found


def until(server, job, kind, **fields):
    """Follow the events up to one of this kind with these fields."""
    for event in server.client.events(job["id"]):
        if event["type"] == kind and all(event[name] == value for name, value in fields.items()):
            return event
    job = server.client.get(job["id"])
    raise AssertionError(f"ended without {kind} {fields}: {job['status']}, {job['error']}, {job['log_tail']}")


def state(server, job, wanted, reasons=None):
    """Ask until the cluster's view of the job is this; a new job's reason comes a little later than its state."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        now = server.client.get(job["id"])["cluster"]
        if now and now["state"] == wanted and (reasons is None or now["reason"] in reasons):
            return now
        time.sleep(0.05)
    raise AssertionError(f"wanted {wanted} {reasons or ''}, got {now}")


def running(server, how="wait", **fields):
    """A job whose ranks are all there: the first step comes after they have met."""
    server.behave("trainer", how)
    job = server.client.create(SMALL | fields)
    until(server, job, "step")
    return job


def steps(server, job):
    return [event["step"] for event in server.client.events(job["id"]) if event["type"] == "step"]


def test_a_job_runs_on_two_nodes_and_ends_with_its_student(server, cluster):
    server.start()
    job = server.client.wait(server.client.create(SMALL | {"priority": 7})["id"])
    assert (job["status"], job["attempt"], job["cluster"]) == ("succeeded", 1, None)
    who = ranks(server, job)
    assert [rank["RANK"] for rank in who] == ["0", "1", "2", "3"]
    assert [rank["LOCAL_RANK"] for rank in who] == ["0", "1", "0", "1"]
    assert [rank["node"] for rank in who] == ["n1", "n1", "n2", "n2"]
    assert {(rank["WORLD_SIZE"], rank["MASTER_ADDR"]) for rank in who} == {("4", "127.0.0.1")}
    assert len({rank["MASTER_PORT"] for rank in who}) == 1
    ((number, _, said),) = cluster.jobs(job["id"])
    assert said == f"etd-ds:{job['id']}:1"
    folder = server.run(job["id"]) / "slurm"
    assert (folder / "1.id").read_text() == (folder / "1.started").read_text() == f"{number}\n"
    assert server.client._http.get(job["links"]["student"]).status_code == 200


def test_ranks_of_a_node_have_its_gpus(server, cluster):
    server.start(cpu=False)
    job = server.client.wait(server.client.create(SMALL)["id"])
    assert job["status"] == "succeeded"
    assert [(rank["devices"], rank["LOCAL_RANK"]) for rank in ranks(server, job)] == [("0,1", "0"), ("0,1", "1")] * 2


def test_cancel_lets_all_ranks_save_and_leaves_nothing(server, cluster):
    server.start()
    job = running(server)
    server.client.cancel(job["id"])
    assert server.client.wait(job["id"])["status"] == "cancelled"
    assert until(server, job, "end")["message"] == "SIGTERM"
    assert (server.run(job["id"]) / "checkpoints" / "latest.json").exists()
    assert not any(lives(rank["pid"]) for rank in ranks(server, job))
    assert (server.run(job["id"]) / "slurm" / "1.exit").read_text() == "85\n"


def test_cancel_kills_what_does_not_listen(server, cluster):
    server.start("--grace", "0.5")
    job = running(server, "deaf")
    server.client.cancel(job["id"])
    assert server.client.wait(job["id"])["status"] == "cancelled"
    assert not processes_of(job)
    assert [state for _, state, _ in cluster.jobs(job["id"])] == ["CANCELLED"]


def test_a_job_that_waits_in_the_cluster_says_so_and_is_taken_back(server, cluster):
    server.start("--slurm-cpus-per-task", "2")
    first = running(server)
    second = server.client.create(SMALL)
    state(server, second, "PENDING", reasons=("Resources", "Priority"))
    server.client.cancel(second["id"])
    assert server.client.wait(second["id"])["status"] == "cancelled"
    assert [state for _, state, _ in cluster.jobs(second["id"])] == ["CANCELLED"]
    server.behave("go", "")
    assert server.client.wait(first["id"])["status"] == "succeeded"


def test_a_rank_that_dies_takes_the_job_down(server, cluster):
    server.start()
    job = server.client.wait(running(server, "die")["id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "trainer_killed")
    assert not any(lives(rank["pid"]) for rank in ranks(server, job))
    assert (server.run(job["id"]) / "slurm" / "1.exit").read_text() == "137\n"


def test_what_the_cluster_cannot_do_is_refused_with_its_reason(server, cluster):
    server.start("--slurm-constraint", "a100")
    job = server.client.wait(server.client.create(SMALL)["id"])
    assert (job["status"], job["error"]["code"], job["attempt"]) == ("failed", "refused", 1)
    assert "Invalid feature specification" in job["error"]["message"]
    assert cluster.jobs(job["id"]) == []
    for field, value in (("nodes", 3), ("gpus", 3)):
        answer = server.client._http.post("/jobs", json=SMALL | {field: value, "batch_size": 36})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


def test_the_time_limit_is_no_end(server, cluster):
    # with the warning due at once, the controller sends it at its next look at time limits, every half minute
    server.start("--slurm-time-minutes", "1", "--slurm-warning", "59")
    job = running(server, nodes=1)
    until(server, job, "end", outcome="stopped", message="SIGUSR1")
    server.behave("go", "")
    job = server.client.wait(job["id"])
    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    assert steps(server, job) == [1, 2, 3]


def test_a_preempted_job_goes_on_when_the_nodes_are_free_again(server, cluster):
    server.start("--slurm-partition", "spare")
    job = running(server)
    others = cluster.occupy()
    until(server, job, "end", outcome="stopped", message="SIGTERM")
    state(server, job, "PENDING")
    server.behave("go", "")
    cluster.cancel(others)
    job = server.client.wait(job["id"])
    assert (job["status"], job["attempt"], job["error"]) == ("succeeded", 2, None)
    assert steps(server, job) == [1, 2, 3]


def test_a_server_killed_right_after_sbatch_submits_nothing_twice(server, cluster, tmp_path, monkeypatch):
    real = slurm_cluster.shutil.which("sbatch")
    deadly = tmp_path / "bin" / "sbatch"
    deadly.parent.mkdir()
    deadly.write_text(f'#!/bin/bash\n{real} "$@" >/dev/null\nkill -KILL $PPID\n')
    deadly.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(deadly.parent), prepend=":")
        server.start()
    server.behave("trainer", "wait")
    job = server.client.create(SMALL)
    assert server.process.wait(timeout=30) == -signal.SIGKILL
    assert not (server.run(job["id"]) / "slurm" / "1.id").exists()
    server.start()
    until(server, job, "step")
    server.behave("go", "")
    assert server.client.wait(job["id"])["status"] == "succeeded"
    assert len(cluster.jobs(job["id"])) == 1


def test_while_the_controller_is_down_nothing_is_given_up(server, cluster):
    server.start()
    job = running(server)
    cluster.end("slurmctld", signal.SIGTERM)
    state(server, job, "UNKNOWN")
    queued = server.client.create(SMALL)
    assert server.client.get(job["id"])["status"] == "running"
    server.behave("go", "")
    assert server.client.wait(job["id"])["status"] == "succeeded", "the folder says so, whatever Slurm says"
    cluster.start()
    queued = server.client.wait(queued["id"])
    assert (queued["status"], queued["attempt"]) == ("succeeded", 1)


def test_a_lost_node_costs_an_attempt_and_its_trainer_is_fenced(server, cluster):
    server.start("--max-retries", "1", "--backoff", "0.01")
    job = running(server, nodes=1, gpus=1)
    (old,) = ranks(server, job, 1)
    cluster.end(old["node"], signal.SIGKILL)
    until(server, job, "attempt", step=1)
    server.behave("go", "")
    job = server.client.wait(job["id"])
    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    (new,) = ranks(server, job, 1)
    assert new["node"] != old["node"]
    deadline = time.monotonic() + 30
    while lives(old["pid"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not lives(old["pid"]), "it finds the newer attempt when it next looks, and leaves"
    assert steps(server, job) == [1, 2, 3], "the old trainer wrote nothing more, the new one went on"


@pytest.mark.timeout(600)
def test_one_request_becomes_a_student_distilled_by_deepspeed_on_two_nodes(cluster, tmp_path, monkeypatch):
    """Everything real: extraction, batch script, two ranks of DeepSpeed on two nodes, download."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Sentence {number} is about two nodes and what they share." for number in range(400)))
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--data-dir", str(tmp_path / "data")]
    command += ["--cache", str(tmp_path / "cache"), "--cpu", "--corpus", f"small={text}"]
    command += ["--slurm", "--slurm-nodes", "2", "--slurm-line", "export MASTER_ADDR=127.0.0.1", "--slurm-poll", "0.5"]
    server = Server(tmp_path).launch(command)
    try:
        job = server.client.create(REAL)
        until(server, job, "step")
        server.client.pause(job["id"])
        until(server, job, "status", status="paused")
        server.client.resume(job["id"])
        assert server.client.wait(job["id"])["status"] == "succeeded", server.client.get(job["id"])
        first, second = [event for event in server.client.events(job["id"]) if event["type"] == "attempt"]
        assert (first["world_size"], second["world_size"]) == (2, 2)
        assert second["step"] > first["step"]
        assert steps(server, job) == list(range(1, REAL["steps"] + 1))
        assert len(cluster.jobs(job["id"])) == 2
        server.client.pull(job["id"], tmp_path / "student")
        config = json.loads((tmp_path / "student" / "config.json").read_text())
        assert (config["num_hidden_layers"], config["hidden_size"]) == (3, 192)
    finally:
        server.end()
        server.client.close()
