"""The composition for real: images built, the CPU profile started, and one request made a student.

It takes ten minutes and 5 GB of disk, so it runs only where ETD_DS_COMPOSE names the command: `docker compose` or
`podman-compose`. With ETD_DS_STAND_INS the images that else come from a registry are made by stand_ins.sh.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time

import httpx
import pytest

from etd_ds.contract import launch, rundir
from service.client import Client

COMPOSE = os.environ.get("ETD_DS_COMPOSE", "")
SMALL = {
    **{"layers": 3, "hidden": 192, "importance_sentences": 32, "mlm_head_steps": 2, "seq_length": 64, "steps": 40},
    **{"batch_size": 4, "gpus": 2, "validation_sequences": 4, "checkpoint_every": 10, "log_every": 1},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not COMPOSE, reason="no container builder is named in ETD_DS_COMPOSE"),
]


@pytest.fixture
def compose():
    """Run the composition's commands as a project of its own, which goes with all its volumes."""
    port = launch.free_port()
    env = {**os.environ, "POSTGRES_PASSWORD": "onlyhere", "PORT": str(port)}
    if os.environ.get("ETD_DS_STAND_INS"):
        subprocess.run([launch.REPOSITORY / "tests/docker/stand_ins.sh", "postgres"], check=True, timeout=1200)
        env |= {"BASE": "localhost/etd-ds-base", "POSTGRES_IMAGE": "localhost/etd-ds-postgres", "TORCH_INDEX": ""}
    command = [*shlex.split(COMPOSE), "--project-name", "etd-ds-test", "--profile", "cpu"]

    def run(*arguments: str, timeout: float = 300) -> str:
        done = subprocess.run([*command, *arguments], env=env, cwd=launch.REPOSITORY / "docker", timeout=timeout,
                              stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    run.url = f"http://127.0.0.1:{port}"
    yield run
    run("down", "--volumes")


def test_one_request_becomes_a_student(compose, tmp_path):
    compose("build", "service", timeout=2400)
    compose("build", timeout=2400)  # from the same layers
    compose("up", "--detach", "db")
    said = compose("run", "--rm", "service", "keys", "create", "me")
    key = next(word for word in said.split() if word.startswith("etd_"))
    compose("up", "--detach")
    assert httpx.get(f"{wait_for(compose.url)}/v1/jobs").status_code == 401
    with Client(compose.url, key=key, timeout=300) as client:
        job = client.create(SMALL)
        # the worker is stopped while it trains: it hands the job back, and goes on when it is there again
        next(event for event in client.events(job["id"]) if event["type"] == "checkpoint")
        compose("stop", "worker-cpu")
        compose("start", "worker-cpu")
        done = client.wait(job["id"])
        assert done["status"] == "succeeded", json.dumps(done, indent=2)
        client.pull(job["id"], tmp_path / "student")
        assert set(rundir.STUDENT_FILES) <= {path.name for path in (tmp_path / "student").iterdir()}
        attempts = [event for event in client.events(job["id"]) if event["type"] == "attempt"]
        assert attempts[-1]["step"] >= (10 if len(attempts) > 1 else 0)


def wait_for(url: str) -> str:
    """The address, once a server answers there."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/healthz", timeout=10).status_code == 200:
                return url
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError("the service does not answer")
