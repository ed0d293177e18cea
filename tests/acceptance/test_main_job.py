"""One request in, one distilled student out: over real HTTP, with a real server and a real two-rank DeepSpeed run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import pytest
import torch
from job_server import SMALL, Server, processes_of
from transformers import AutoModel, AutoTokenizer

from etd_ds.contract import rundir, teachers

pytestmark = pytest.mark.slow


def test_one_request_in_one_distilled_student_out_though_the_server_is_killed_meanwhile(server: Server, tmp_path):
    job = server.create(steps=30, checkpoint_every=15, validate_every=15)
    assert job["status"] in ("queued", "running")
    assert (job["student"]["layers"], job["student"]["hidden"]) == (3, 192)
    assert job["student"]["compression"] == pytest.approx(
        job["student"]["teacher_parameters"] / job["student"]["parameters"]
    )
    assert job["student"]["extraction_seconds"] > 0
    assert job["id"] in [entry["id"] for entry in server.http.get("/jobs").json()["data"]]

    events, stream = [], server.events(job["id"])
    while not events or events[-1]["type"] != "step":
        last, event = next(stream)
        events.append(event)
    stream.close()
    server.kill(signal.SIGKILL)
    assert processes_of(server.data_dir / "jobs" / job["id"]), "the trainer outlives the server"
    server.start()
    events += [event for _, event in server.events(job["id"], last)]
    steps = [event["step"] for event in events if event["type"] == "step"]
    assert steps == list(range(1, 31)), "no gap and no repeat across the restart"
    assert [event["step"] for event in events if event["type"] == "checkpoint"] == [15, 30]
    (attempt,) = (event for event in events if event["type"] == "attempt")
    assert attempt["world_size"] == 2

    done = server.get(job["id"])
    assert done["status"] == "succeeded", done
    archive = server.http.get(f"/jobs/{job['id']}/student")
    with tarfile.open(fileobj=io.BytesIO(archive.content)) as tar:
        tar.extractall(tmp_path, filter="data")
    (config,) = tmp_path.rglob("config.json")
    folder = config.parent
    assert set(rundir.STUDENT_FILES) <= {path.name for path in folder.iterdir()}
    for name in rundir.STUDENT_FILES:
        single = server.http.get(f"/jobs/{job['id']}/student/{name}")
        assert single.content == (folder / name).read_bytes()
        assert hashlib.sha256(single.content).hexdigest() == done["result"]["files"][name]["sha256"]

    model, report = AutoModel.from_pretrained(folder, output_loading_info=True, add_pooling_layer=False)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    text = AutoTokenizer.from_pretrained(folder)("one small encoder, please", return_tensors="pt")
    assert model(**text).last_hidden_state.shape == (1, text["input_ids"].shape[1], 192)
    before = json.loads((server.data_dir / "jobs" / job["id"] / "init" / "extraction.json").read_text())
    assert json.loads((folder / "extraction.json").read_text())["hidden"] == before["hidden"]
    assert len(before["hidden"]) == 192
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_cancel_ends_every_process_of_the_job(server: Server):
    job = server.create(steps=100_000)
    next(e for _, e in server.events(job["id"]) if e["type"] == "step")
    answer = server.http.post(f"/jobs/{job['id']}/cancel")
    assert answer.status_code in (200, 202)
    server.wait(job["id"], ("cancelled",))
    run = server.data_dir / "jobs" / job["id"]
    deadline = time.monotonic() + 60
    while processes_of(run) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_of(run)
    assert server.http.get(f"/jobs/{job['id']}/student").status_code == 409


def test_a_killed_trainer_is_a_failed_job_with_its_last_words(server: Server):
    job = server.create(steps=100_000, gpus=1)
    next(e for _, e in server.events(job["id"]) if e["type"] == "step")
    run = server.data_dir / "jobs" / job["id"]
    ranks = [pid for pid, command in processes_of(run).items() if "--local_rank" in command and "train.py" in command]
    victims = [pid for pid in ranks if "deepspeed.launcher" not in processes_of(run).get(pid, "")]
    os.kill(victims[0], signal.SIGKILL)
    failed = server.wait(job["id"], ("failed", "succeeded", "cancelled"))
    assert failed["status"] == "failed"
    assert failed["error"]["code"]
    assert failed["error"]["message"]
    assert failed["log_tail"]
    assert not processes_of(run)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with room for an extracted student and not for a checkpoint."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode(errors='replace').strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_a_failed_job_that_says_so(data_dir, small_disk):
    server = Server(small_disk / "data", cache=data_dir.with_name("cache"), log=data_dir.with_name("full.log"))
    server.start()
    try:
        job = server.create(gpus=1)
        failed = server.wait(job["id"], ("failed", "succeeded", "cancelled"))
        assert failed["status"] == "failed", failed
        assert failed["error"]["code"] == "disk_full"
        assert any("No space left on device" in line for line in failed["log_tail"])
        assert not processes_of(small_disk / "data" / "jobs")
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        (small_disk / "filler").write_bytes(bytes(max(0, free - (8 << 20))))
        refused = server.http.post("/jobs", json=SMALL)
        assert refused.status_code == 507, "no room for another student either"
        assert [entry["id"] for entry in server.http.get("/jobs").json()["data"]] == [job["id"]]
    finally:
        server.kill()
        server.http.close()


def test_a_student_serves_as_a_teacher_fetched_by_a_hub_client(server: Server, tmp_path):
    """`--teacher org/name` goes through huggingface_hub; our own server speaks its protocol."""
    done = [entry for entry in server.http.get("/jobs").json()["data"] if entry["status"] == "succeeded"]
    teacher = done[0] if done else server.wait(server.create()["id"], ("succeeded", "failed"))
    argv = [sys.executable, "-m", "etd_ds.cli", "extract", "--teacher", f"students/{teacher['id']}"]
    argv += ["--layers", "1", "--hidden", "96", "--mode", "rand", "--out", str(tmp_path / "cut"), "--quiet"]
    env = {**os.environ, "HF_ENDPOINT": str(server.http.base_url.join("/hf")).rstrip("/"), "HF_HUB_OFFLINE": "0"}
    found = subprocess.run([*argv, "--cache", str(tmp_path / "cache")], env=env, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["teacher"]["hidden"] == 192
    assert AutoModel.from_pretrained(tmp_path / "cut").config.hidden_size == 96


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"layers": 7}, "layers"),
        ({"hidden": 190}, "hidden"),
        ({"hidden": 10**9}, "hidden"),
        ({"hidden": "wide"}, "hidden"),
        ({"colour": "red"}, "colour"),
        ({"teacher": "no such teacher"}, "teacher"),
        ({"teacher": str(teachers.embedded_folder())}, "teacher"),
        ({"corpus": "/etc/passwd"}, "corpus"),
        ({"gpus": 1000, "batch_size": 1000}, "gpus"),
    ],
)
def test_bad_input_is_refused_before_any_work(server: Server, change, field):
    before = server.http.get("/jobs").json()
    answer = server.http.post("/jobs", json={"layers": 3, "hidden": 192, **change})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["field"] == field
    assert server.http.get("/jobs").json() == before
