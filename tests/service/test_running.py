"""What becomes of running jobs when things go wrong: real server, real supervisors, trainers without maths."""

from __future__ import annotations

import os
import select
import shutil
import signal
from pathlib import Path

import httpx
import pytest
from server_process import slots, until

SMALL = {"layers": 3, "hidden": 192, "steps": 3}


def ranks(server, job):
    return [int((server.cache / f"rank-{job['id']}-{number}").read_text()) for number in range(2)]


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def supervisor(server, job):
    folder = str(server.run(job["id"]) / "supervisor").encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"service.executors.shim" in command and folder in command:
                return int(entry.name)
    return None


def running(server, how="wait", **options):
    server.behave("trainer", how)
    job = server.client.create(SMALL | options)
    until(server, job, "step")
    return job


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("crash", "trainer_crashed", "see the last log lines"),
        ("die", "trainer_killed", "killed from outside"),
        ("silent", "trainer_killed", "killed from outside"),
        ("full", "disk_full", "disk is full"),
        ("refuse", "hardware", "precision: fp16 needs a GPU"),
    ],
)
def test_a_trainer_that_fails_is_a_failed_job_with_its_last_words(server, how, code, words):
    server.start()
    server.behave("trainer", how)
    job = server.client.wait(server.client.create(SMALL)["id"])
    assert (job["status"], job["error"]["code"]) == ("failed", code)
    assert words in job["error"]["message"]
    assert job["log_tail"][:2] == ["etd-jobs: attempt 1", "training begins"]
    assert job["attempt"] == 1
    assert not any(lives(pid) for pid in ranks(server, job))
    assert server.client._http.get(job["links"]["student"]).status_code == 409


def test_a_killed_trainer_is_started_again_if_the_operator_says_so(server):
    server.start("--retry-killed", "--max-retries", "1")
    server.behave("trainer", "die")
    job = server.client.wait(server.client.create(SMALL | {"steps": 9})["id"])
    assert (job["status"], job["attempt"]) == ("failed", 2)
    steps = [event["step"] for event in server.client.events(job["id"]) if event["type"] == "step"]
    assert steps == [1, 2], "the second try continued from the first one's checkpoint"


def test_cancel_lets_the_trainer_save_and_leaves_nothing_running(server):
    server.start()
    job = running(server)
    answer = server.client.cancel(job["id"])
    assert answer["status"] in ("running", "cancelled")
    job = server.client.wait(job["id"])
    assert (job["status"], job["error"]) == ("cancelled", None)
    assert (server.run(job["id"]) / "checkpoints" / "latest.json").exists()
    assert [e["outcome"] for e in server.client.events(job["id"]) if e["type"] == "end"] == ["stopped"]
    assert not any(lives(pid) for pid in ranks(server, job))
    assert supervisor(server, job) is None
    assert slots(server.client) == {"free": 2, "used": 0}


def test_cancel_kills_what_does_not_listen(server):
    server.start("--grace", "0.3")
    job = running(server, "deaf")
    server.client.cancel(job["id"])
    assert server.client.wait(job["id"])["status"] == "cancelled"
    assert not any(lives(pid) for pid in ranks(server, job))


def test_cancel_works_without_the_supervisor(server):
    server.start("--grace", "0.3")
    job = running(server, "deaf")
    os.kill(supervisor(server, job), signal.SIGKILL)
    server.client.cancel(job["id"])
    assert server.client.wait(job["id"])["status"] == "cancelled"
    assert not any(lives(pid) for pid in ranks(server, job))


def test_a_queued_job_is_cancelled_at_once(server):
    server.start("--slots", "1")
    first = running(server)
    second = server.client.create(SMALL)
    assert second["queue"]["position"] == 1
    assert "slots" in second["queue"]["reason"]
    assert server.client.cancel(second["id"])["status"] == "cancelled"
    server.behave("go", "")
    assert server.client.wait(first["id"])["status"] == "succeeded"


def test_a_killed_server_kills_no_job_and_forgets_nothing(server):
    server.start("--slots", "1")
    job = running(server)
    queued = server.client.create(SMALL)
    before = list(zip(*(range(3), server.client.events(job["id"])), strict=False))
    last = before[-1][1]
    server.end(signal.SIGKILL)
    assert all(lives(pid) for pid in ranks(server, job))
    server.behave("go", "")
    server.start("--slots", "1")
    rest = [event["step"] for event in server.client.events(job["id"], after=last["id"]) if event["type"] == "step"]
    assert rest == [2, 3], "watchers go on without gap or repeat"
    assert server.client.get(job["id"])["attempt"] == 1
    assert server.client.wait(queued["id"])["status"] == "succeeded"


def test_a_server_asked_to_go_ends_streams_and_lets_jobs_run(server):
    server.start()
    job = running(server)
    watching = server.client.events(job["id"])
    next(watching)
    log = server.client.follow_log(job["id"])
    next(log)
    assert "Traceback" not in server.end(signal.SIGTERM)
    with pytest.raises(httpx.TransportError):  # it is no whole log, and nobody is there to ask why
        list(log)
    assert server.process.returncode == -signal.SIGTERM
    assert all(lives(pid) for pid in ranks(server, job))
    server.behave("go", "")
    server.start()
    assert server.client.wait(job["id"])["status"] == "succeeded"


def test_a_trainer_that_ended_while_no_server_looked_has_succeeded(server):
    server.start()
    job = running(server)
    shim = supervisor(server, job)
    server.end(signal.SIGKILL)
    server.behave("go", "")
    descriptor = os.pidfd_open(shim)
    assert select.select([descriptor], [], [], 30)[0], "the supervisor ends with its trainer"
    os.close(descriptor)
    server.start()
    assert server.client.get(job["id"])["status"] in ("running", "succeeded")
    assert server.client.wait(job["id"])["status"] == "succeeded"


def test_a_lost_trainer_is_started_again_from_its_checkpoint(server):
    server.start("--max-retries", "1")
    job = running(server, steps=4)
    server.behave("trainer", "")
    everything = [supervisor(server, job), *ranks(server, job)]
    launcher = int(Path(f"/proc/{everything[1]}/stat").read_text().rpartition(")")[2].split()[1])
    for pid in (everything[0], launcher, *everything[1:]):
        os.kill(pid, signal.SIGKILL)
    job = server.client.wait(job["id"])
    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    steps = [event["step"] for event in server.client.events(job["id"]) if event["type"] == "step"]
    assert steps == [1, 2, 3, 4]


def test_a_lost_trainer_without_tries_left_is_a_failed_job(server):
    server.start("--max-retries", "0")
    job = running(server)
    launcher = int(Path(f"/proc/{ranks(server, job)[0]}/stat").read_text().rpartition(")")[2].split()[1])
    for pid in (supervisor(server, job), launcher, *ranks(server, job)):
        os.kill(pid, signal.SIGKILL)
    job = server.client.wait(job["id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "trainer_lost")


def test_an_old_attempts_full_disk_is_not_the_next_ones(server):
    server.start()
    server.behave("trainer", "full")
    job = server.client.create(SMALL)
    assert server.client.wait(job["id"])["error"]["code"] == "disk_full"
    server.behave("trainer", "crash")
    server.client.retry(job["id"])
    assert server.client.wait(job["id"])["error"]["code"] == "trainer_crashed"


def test_a_pause_is_taken_back(server):
    server.start("--grace", "5")
    job = running(server)
    os.kill(supervisor(server, job), signal.SIGSTOP)  # so that the pause is still to come
    assert server.client.pause(job["id"])["asked"] == "pause"
    assert server.client.resume(job["id"])["asked"] is None
    os.kill(supervisor(server, job), signal.SIGCONT)
    server.behave("go", "")
    assert server.client.wait(job["id"])["status"] == "succeeded"


def test_a_job_whose_folder_is_gone_holds_up_no_other(server):
    server.start("--slots", "1")
    first = running(server)
    lost, job = server.client.create(SMALL), server.client.create(SMALL)
    shutil.rmtree(server.run(lost["id"]))
    server.behave("go", "")
    assert server.client.wait(first["id"])["status"] == "succeeded"
    assert server.client.wait(job["id"])["status"] == "succeeded"
    failed = server.client.get(lost["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "refused")
    assert "run folder is gone" in failed["error"]["message"]
