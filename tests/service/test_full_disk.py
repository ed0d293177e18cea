"""A data folder on a disk that fills up: requests are refused whole, jobs end failed, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import Server, until

from service.client import ServiceError

SMALL = {"layers": 3, "hidden": 192, "steps": 3}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", folder]).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path, *, leave: int = 0) -> Path:
    """Take all space of the file system but some bytes."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as out:
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - leave
        out.write(bytes(max(0, free)))
    return ballast


def test_a_full_disk_refuses_new_jobs_and_loses_no_old_ones(small_disk: Path, server: Server):
    server.root = small_disk
    server.start()
    server.behave("trainer", "wait")
    running = server.client.create(SMALL)
    until(server, running, "step")
    before = server.client.list()
    ballast = fill(small_disk)
    with pytest.raises(ServiceError) as refused:
        server.client.create(SMALL)
    assert (refused.value.status, refused.value.problem["code"]) == (507, "disk_full")
    assert [job["id"] for job in server.client.list()] == [job["id"] for job in before]
    assert [path.name for path in (small_disk / "data" / "jobs").iterdir()] == [running["id"]]
    (server.cache / "go").touch()  # the trainer goes on and finds no room for its step
    failed = until(server, running, "status", status="failed")
    assert failed["status"] == "failed"
    ballast.unlink()
    server.behave("trainer", "")
    server.client.retry(running["id"])
    assert server.client.wait(running["id"])["status"] == "succeeded"
    assert server.client.wait(server.client.create(SMALL)["id"])["status"] == "succeeded"


def test_a_job_extracted_behind_its_answer_fails_with_the_reason_and_can_be_retried(small_disk: Path, server: Server):
    server.root = small_disk
    server.behave("worker", "wait on extract")
    server.start("--lease", "1")
    job = server.client.create(SMALL, background=True)
    until(server, job, "progress")
    ballast = fill(small_disk)
    (server.cache / "cut").touch()
    failed = until(server, job, "status", status="failed")
    assert failed["error"] == "disk_full"
    ballast.unlink()
    server.client.retry(job["id"])
    assert server.client.wait(job["id"])["status"] == "succeeded"


def test_with_so_much_space_left_a_job_is_made_whole_or_not_at_all(small_disk: Path, server: Server):
    server.root = small_disk
    server.start()
    for leave in (0, 4096, 16384, 65536, 262144):
        ballast = fill(small_disk, leave=leave)
        made = refused = None
        try:
            made = server.client.create(SMALL)
        except ServiceError as error:
            refused = error
        assert refused is None or refused.status == 507, (leave, refused.problem)
        ballast.unlink()
        jobs = server.client.list()
        assert [job["id"] for job in jobs] == ([made["id"]] if made else []), leave
        folders = {path.name for path in (small_disk / "data" / "jobs").iterdir()}
        assert folders == {job["id"] for job in jobs}, leave
        for job in jobs:
            assert server.client.wait(job["id"])["status"] in ("succeeded", "failed")
            server.client.delete(job["id"])
