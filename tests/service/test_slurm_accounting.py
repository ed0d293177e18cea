"""The Slurm executor on a cluster that counts: jobs are charged to an account, and without one they are refused."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import slurm_cluster
from server_process import DOUBLES, Server

MISSING = slurm_cluster.missing("slurmdbd", "mariadbd", "mariadb-install-db", "sacctmgr")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.skipif(bool(MISSING), reason=MISSING)]

SMALL = {"layers": 3, "hidden": 192, "steps": 3, "nodes": 2, "gpus": 2, "batch_size": 4}
OPTIONS = (
    *("--slurm", "--slurm-nodes", "2", "--slurm-gpus-per-node", "2", "--slurm-poll", "0.2", "--slurm-settle", "0.5"),
    *("--slurm-line", "export MASTER_ADDR=127.0.0.1"),
    *("--trainer-command", f"{sys.executable} {DOUBLES / 'slurm_rank.py'}"),
)


def test_jobs_are_charged_to_the_account_and_others_are_refused(tmp_path, monkeypatch):
    cluster = slurm_cluster.Cluster(tmp_path / "lab", accounting=True)
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    server = Server(tmp_path, OPTIONS)
    try:
        cluster.start()
        server.start("--slurm-account", "lab")
        job = server.client.wait(server.client.create(SMALL)["id"])
        assert (job["status"], job["attempt"]) == ("succeeded", 1), job["error"]
        assert charged(job["id"]) == ["lab|COMPLETED"]
        server.end()
        server.start("--slurm-account", "nobody")
        job = server.client.wait(server.client.create(SMALL)["id"])
        assert (job["status"], job["error"]["code"]) == ("failed", "refused")
        assert "Invalid account" in job["error"]["message"]
        assert charged(job["id"], wait=False) == []
    finally:
        server.end()
        server.client.close()
        cluster.stop()


def charged(name, *, wait=True):
    """What the accounting has of a job; it learns of an end a little later."""
    command = ["sacct", "-nXP", f"--name={name}", "--format=Account,State"]
    deadline = time.monotonic() + 30
    while True:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()
        if not wait or (said and "RUNNING" not in said[0]) or time.monotonic() > deadline:
            return said
        time.sleep(0.2)
