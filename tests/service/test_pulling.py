"""Downloads over connections that are cut, by processes that are killed, of files that are not what was published."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cutting_proxy import CuttingProxy
from server_process import Server

from etd_ds.contract import rundir
from service import pulling
from service.client import Client, ServiceError

SMALL = {"layers": 3, "hidden": 192, "steps": 2}
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A server with a student whose weights are several pieces: (server, job)."""
    server = Server(tmp_path_factory.mktemp("server")).start()
    job = server.client.wait(server.client.create(SMALL)["id"])
    run = rundir.RunDir(server.run(job["id"]))
    with (run.student / WEIGHTS).open("wb") as out:
        out.write(os.urandom(3 * pulling.PIECE + 1000))
    files = {path.name: rundir.digest(path) for path in run.student.iterdir()}
    result = run.read_result()
    assert result is not None
    rundir.publish_json(run.result, result.model_copy(update={"files": files}))
    yield server, server.client.get(job["id"])
    server.client.close()
    server.end()


def whole(folder: Path, job: dict[str, object]) -> bool:
    """Whether the folder holds the student and nothing else."""
    files = {name: rundir.FileDigest(size=one["size"], sha256=one["sha256"])
             for name, one in job["result"]["files"].items()}  # fmt: skip
    return {path.name: rundir.digest(path) for path in folder.iterdir()} == files


def test_connections_cut_in_the_middle_cost_nothing_but_what_was_on_its_way(finished, tmp_path):
    server, job = finished
    with CuttingProxy(server.url, cuts=6, after=1_000_000) as proxy, Client(proxy.url) as client:
        seen: list[int] = []
        client.pull(job["id"], tmp_path, progress=lambda done, _: seen.append(done))
        assert proxy.cuts_left == 0
    total = sum(one["size"] for one in job["result"]["files"].values())
    assert seen == sorted(seen), "no byte was fetched twice"
    assert seen[-1] == total
    assert whole(tmp_path, job)


def test_a_killed_download_goes_on_where_it_was(finished, tmp_path):
    server, job = finished
    script = (
        "import os, pathlib, sys; from service.client import Client\n"
        "def told(done, total):\n"
        "    if done > 40 << 20: os.kill(os.getpid(), 9)\n"
        f"Client({server.url!r}).pull({job['id']!r}, pathlib.Path({str(tmp_path)!r}), progress=told, connections=2)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / WEIGHTS).exists(), "half a file never has the name of a whole one"
    _, *begins = (tmp_path / f".{WEIGHTS}.pieces").read_text().splitlines()
    size = job["result"]["files"][WEIGHTS]["size"]
    arrived = sum(min(pulling.PIECE, size - int(begin)) for begin in begins)
    assert arrived > 0
    seen: list[int] = []
    server.client.pull(job["id"], tmp_path, progress=lambda done, _: seen.append(done))
    assert next(done for done in seen if done >= pulling.PIECE) >= arrived
    assert whole(tmp_path, job)


def test_damage_is_noticed_and_mended_once(finished, tmp_path):
    server, job = finished
    digest = rundir.FileDigest(**{name: job["result"]["files"][WEIGHTS][name] for name in ("size", "sha256")})
    part = pulling.Part(tmp_path / WEIGHTS, digest)
    for start in part.open():
        part.arrived(start)  # it says that all is there, and nothing is
    server.client.pull(job["id"], tmp_path)
    assert whole(tmp_path, job)


def test_what_is_not_what_was_published_never_gets_its_name(finished, tmp_path):
    server, job = finished
    weights = server.run(job["id"]) / "student" / WEIGHTS
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        with pytest.raises(ServiceError, match=rf"{re.escape(WEIGHTS)}: what arrived has not the sha256"):
            server.client.pull(job["id"], tmp_path)
    finally:
        weights.write_bytes(kept)
    assert not [path.name for path in tmp_path.iterdir() if "model" in path.name]
    assert (tmp_path / "config.json").is_file()


def test_an_error_of_the_service_ends_it_at_once(finished, tmp_path):
    server, job = finished
    gone = server.run(job["id"]) / "student"
    gone.rename(gone.with_name("elsewhere"))
    try:
        with pytest.raises(ServiceError, match="gone"):
            server.client.pull(job["id"], tmp_path)
    finally:
        gone.with_name("elsewhere").rename(gone)
    server.client.pull(job["id"], tmp_path)
    assert whole(tmp_path, job)
