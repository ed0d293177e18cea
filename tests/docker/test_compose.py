"""The composition for real: images built, services healthy, and on either worker one request made a student.

It takes twenty minutes and 10 GB of disk, so it runs only where ETD_DS_COMPOSE names the command: `docker compose` or
`podman-compose`. With ETD_DS_STAND_INS the images that else come from a registry are made by stand_ins.sh. The image of
trainers is built without CUDA, as without_gpus.yaml says: all the rest of it is as on a GPU machine.
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
ENGINE = "podman" if "podman" in COMPOSE else "docker"
PROJECT = "etd-ds-test"
SMALL = {
    **{"layers": 3, "hidden": 192, "importance_sentences": 32, "mlm_head_steps": 2, "seq_length": 64, "steps": 40},
    **{"batch_size": 4, "gpus": 2, "validation_sequences": 4, "checkpoint_every": 10, "log_every": 1},
}
IMAGES = {"CUDA_DEVEL": "ubuntu:24.04", "CUDA_BASE": "ubuntu:24.04"}
STAND_INS = {
    **dict.fromkeys(["BASE", "CUDA_DEVEL", "CUDA_BASE"], "localhost/etd-ds-base"),
    **{"POSTGRES_IMAGE": "localhost/etd-ds-postgres", "TORCH_INDEX": ""},
}
LOAD_OPERATORS = (
    "from deepspeed.ops import op_builder as ops; "
    "print(ops.CPUAdamBuilder().load().__file__, ops.FusedAdamBuilder().load().__file__)"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not COMPOSE, reason="no container builder is named in ETD_DS_COMPOSE"),
]


class Composition:
    """The composition as a project of its own."""

    def __init__(self) -> None:
        port = launch.free_port()
        self.url, self.key = f"http://127.0.0.1:{port}", ""
        stand_ins = os.environ.get("ETD_DS_STAND_INS")
        self._env = {**os.environ, **(STAND_INS if stand_ins else IMAGES), "PORT": str(port)}
        # in podman's own format an image has no health check
        self._env |= {"POSTGRES_PASSWORD": "onlyhere", "BUILDAH_FORMAT": "docker"}
        if stand_ins:
            subprocess.run([launch.REPOSITORY / "tests/docker/stand_ins.sh", "postgres"], check=True, timeout=1200)

    def run(self, *arguments: str, timeout: float = 300) -> str:
        """One of compose's commands."""
        files = ["--file", "compose.yaml", "--file", "../tests/docker/without_gpus.yaml"]
        profiles = ["--profile", "cpu", "--profile", "gpu"]
        command = [*shlex.split(COMPOSE), "--project-name", PROJECT, *files, *profiles, *arguments]
        return self._done(command, timeout)

    def remove(self) -> None:
        """The containers and all volumes."""
        self.run("down", "--volumes")
        # podman-compose forgets those that its `run` made
        self._done([ENGINE, "volume", "rm", "--force", f"{PROJECT}_data"], 60)

    def inside(self, service: str, *command: str) -> str:
        """What a command says in a service's container."""
        return self._done([ENGINE, "exec", self._container(service), *command], 120)

    def health(self, service: str) -> str:
        """What the container engine says of a service's health; nothing if it is not to look at it."""
        container = self._container(service)
        if ENGINE == "podman":  # which looks by itself only where there is systemd
            subprocess.run([ENGINE, "healthcheck", "run", container], timeout=60)
        return self._done([ENGINE, "inspect", "--format", "{{with .State.Health}}{{.Status}}{{end}}", container], 60)

    def _container(self, service: str) -> str:
        labels = [f"label=com.docker.compose.project={PROJECT}", f"label=com.docker.compose.service={service}"]
        return self._done([ENGINE, "ps", "--quiet", *(f"--filter={label}" for label in labels)], 60)

    def _done(self, command: list[str], timeout: float) -> str:
        done = subprocess.run(command, env=self._env, cwd=launch.REPOSITORY / "docker", timeout=timeout,
                              stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout.strip()


@pytest.fixture(scope="module")
def composition():
    """Built and started but for its workers; it goes with all its volumes."""
    it = Composition()
    it.run("build", "service", timeout=2400)
    it.run("build", timeout=2400)  # worker-cpu from the same layers
    try:
        it.run("up", "--detach", "db")
        said = it.run("run", "--rm", "service", "keys", "create", "me")
        it.key = next(word for word in said.split() if word.startswith("etd_"))
        it.run("up", "--detach", "service")
        until(lambda: it.health("service") == "healthy")
        yield it
    finally:
        it.remove()


@pytest.fixture
def worker(composition, request):
    """A worker that runs during the test."""
    composition.run("up", "--detach", request.param)
    yield request.param
    composition.run("stop", request.param)


@pytest.mark.parametrize(
    ("worker", "deepspeed", "operator"),
    [("worker-cpu", "zero2", ""), ("worker-gpu", "zero2_offload", "cpu_adam_op")],
    indirect=["worker"],
)
def test_one_request_becomes_a_student(composition, worker, deepspeed, operator, tmp_path):
    assert httpx.get(f"{composition.url}/v1/jobs").status_code == 401
    with Client(composition.url, key=composition.key, timeout=300) as client:
        job = client.create({**SMALL, "deepspeed": deepspeed})
        next(event for event in client.events(job["id"]) if event["type"] == "checkpoint")
        if operator:  # which was compiled when the image was built
            assert composition.inside(worker, "sh", "-c", f"cat /proc/[0-9]*/maps | grep {operator}")
        # the worker is stopped while it trains: it hands the job back, and goes on when it is there again
        composition.run("stop", worker)
        composition.run("start", worker)
        done = client.wait(job["id"])
        assert done["status"] == "succeeded", json.dumps(done, indent=2)
        client.pull(job["id"], tmp_path / "student")
        assert set(rundir.STUDENT_FILES) <= {path.name for path in (tmp_path / "student").iterdir()}
        attempts = [event for event in client.events(job["id"]) if event["type"] == "attempt"]
        assert attempts[-1]["step"] >= (10 if len(attempts) > 1 else 0)


@pytest.mark.parametrize("worker", ["worker-gpu"], indirect=True)
def test_the_trainers_image_compiles_nothing(composition, worker):
    """DeepSpeed's operators are in it, for any processor with AVX2, and what would compile them is not."""
    compilers = "for it in c++ g++ nvcc gcc; do command -v $it; done"
    assert composition.inside(worker, "sh", "-c", compilers) == "/usr/bin/gcc", "which Triton's kernels need"
    operators = composition.inside(worker, "python", "-c", LOAD_OPERATORS).split()[-2:]
    assert all(operator.startswith("/opt/venv/lib") for operator in operators), operators
    for operator in operators:
        assert composition.inside(worker, "sh", "-c", f"objdump --disassemble {operator} | grep -c %zmm || true") == "0"


@pytest.mark.parametrize("worker", ["worker-cpu", "worker-gpu"], indirect=True)
def test_ours_have_no_rights_and_are_watched(composition, worker):
    for service in ("service", worker):
        assert composition.inside(service, "id", "-u") == "10001"
        said = composition.inside(service, "sh", "-c", "touch /opt/etd-ds/mine 2>&1 || true")
        assert "Read-only file system" in said
    until(lambda: composition.health("db") == "healthy")
    assert composition.health("service") == "healthy"
    assert composition.health(worker) == "", "a worker serves nothing that could be asked"


def until(condition) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.5)
