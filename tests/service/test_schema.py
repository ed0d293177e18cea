"""The API does what its schema says: schemathesis asks a real server everything that the schema allows, and more."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from server_process import Server

from service.admission import JobRequest
from service.app import create_app
from service.settings import Settings


def test_limits_of_the_spec_are_in_the_schema():
    schema = JobRequest.model_json_schema()["properties"]
    assert (schema["layers"]["minimum"], schema["layers"]["maximum"]) == (1, 2**31 - 1)
    assert schema["learning_rate"]["exclusiveMinimum"] == 0


def test_whatever_may_be_too_much_says_so(tmp_path):
    paths = create_app(Settings(data_dir=tmp_path, cache=tmp_path / "cache")).openapi()["paths"]
    found = {(verb, path) for path, ways in paths.items() for verb, way in ways.items() if "429" in way["responses"]}
    job, secret = "/jobs/{job_id}", "/webhooks/secret"
    wanted = {("post", "/jobs"), ("delete", job), ("get", secret), ("post", secret)}
    wanted |= {("post", f"{job}/{ask}") for ask in ("cancel", "pause", "resume", "retry")}
    assert found == wanted | {("get", f"{job}/events"), ("get", f"{job}/log")}


@pytest.mark.slow
def test_nothing_is_undocumented(server: Server):
    command = Path(sys.executable).with_name("schemathesis")
    if not command.exists():
        pytest.skip("schemathesis is not installed")
    server.start("--grace", "1")
    ids = [server.client.create({"layers": 3, "hidden": 192, "steps": 2})["id"] for _ in range(2)]
    for job_id in ids:
        server.client.wait(job_id)
    # a real job and file, so that answers are not only 404; the second job is for the hub, which deletes nothing
    parameters = {"path.job_id": ids[0], "path.owner": "students", "path.revision": "main", "path.path": "config.json"}
    hub = f'[[operations]]\ninclude-path-regex = "^/hf/"\nparameters = {{"path.name" = "{ids[1]}"}}\n'
    # deleting comes last: otherwise nothing is there for the others
    gone = '[[operations]]\ninclude-method = "DELETE"\nparameters = {"path.job_id" = "job-0"}\n'
    lines = "\n".join(f'"{name}" = "{value}"' for name, value in parameters.items())
    (server.root / "schemathesis.toml").write_text(f"[parameters]\n{lines}\n\n{hub}\n{gone}")
    # which specs fit is decided by the teacher, which no schema knows: a valid spec may well be refused
    arguments = [command, "run", f"{server.url}/openapi.json", "--phases", "coverage,fuzzing", "--max-examples", "10",
                 "--exclude-checks", "positive_data_acceptance", "--seed", "1", "--no-color"]  # fmt: skip
    done = subprocess.run(arguments, cwd=server.root, capture_output=True, text=True, timeout=500, check=False)
    said = done.stdout[-6000:]
    assert done.returncode == 0, said
    assert "Traceback" not in server.end(), said
    shutil.rmtree(server.root / ".hypothesis", ignore_errors=True)
