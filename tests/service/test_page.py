"""What docs/service.md says to type works when it is typed, in its order."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from server_process import Server

from etd_ds.contract import rundir
from service.keys import SCOPES
from service.problems import TITLES
from service.status import STATUSES

PAGE = (Path(__file__).parents[2] / "docs" / "service.md").read_text()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_examples(server: Server, tmp_path: Path):
    server.start()
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) >= 8
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    outside = {**os.environ, "URL": server.url, "PATH": path, "HF_HOME": str(tmp_path / "hf"), "NO_COLOR": "1"}
    script = "set -euo pipefail\n" + "\necho; echo ----\n".join(blocks)
    (tmp_path / "page").mkdir()
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path / "page", env=outside, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answers = done.stdout.split("----\n")
    assert json.loads(answers[0])["student"]["hidden"] == 192
    assert "event: status" in answers[3]
    assert {path.name for path in (tmp_path / "page" / "student").iterdir()} == set(rundir.STUDENT_FILES)
    assert (tmp_path / "page" / "first-bytes").stat().st_size == 100
    assert (tmp_path / "page" / "from-hub" / "config.json").is_file()
    assert json.loads(answers[-2])["errors"][0]["field"] == "layers"
    assert 'etd_jobs{status="succeeded"} 0' in answers[-1]
    assert server.client.list() == []


def test_the_page_names_what_there_is():
    for status in STATUSES:
        assert f"`{status}`" in PAGE
    for scope in ("jobs:read", "jobs:write", "students:read"):
        assert scope in SCOPES
        assert scope in PAGE
    for code in (401, 403, 404, 409, 413, 422, 429, 503, 507):
        assert str(code) in PAGE
        assert code in TITLES
