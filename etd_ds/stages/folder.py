"""A run folder made by hand: a student folder and spec flags instead of a request."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from etd_ds.contract import errors, flags, rundir, shape

# Fields of the spec that follow from the student's own files, or from how the trainer is started.
FROM_STUDENT = ("layers", "hidden", "ffn", "mode", "deepspeed", "gpus", "nodes")


def lay(run: rundir.RunDir, *, student: Path, given: dict[str, Any]) -> None:
    """Write `run.job` and `run.init` from a stock student folder. Raises `EtdError`.

    A folder that was laid before must hold the same spec; then nothing is done, so that a run can continue.
    """
    config = _json(student / "config.json")
    found = shape.from_config(config)
    manifest = student / "extraction.json"
    mode = _json(manifest).get("mode", "none") if manifest.exists() else "none"
    job = flags.parse({"layers": found.layers, "hidden": found.hidden, "ffn": found.ffn, "mode": mode, **given})
    if run.job.exists():
        if run.read_job() != job:
            raise errors.RunFolderError(
                f"{run.root}: holds a run with other settings; give another --out, or --run to continue that one"
            )
    else:
        rundir.publish_json(run.job, job)
    if not run.init.exists():
        with rundir.publishing(run.init) as aside:
            for path in student.iterdir():
                if path.is_file():
                    shutil.copyfile(path, aside / path.name)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise errors.RunFolderError(f"--student: cannot read {path}: {error}") from None
    if not isinstance(content, dict):
        raise errors.RunFolderError(f"--student: {path} holds no JSON object")
    return content
