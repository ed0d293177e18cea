"""A run folder made by hand: a student folder and spec flags instead of a request."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from etd_ds.contract import errors, flags, rundir, shape

# What only the student's maker can give; its weights are read strictly later on.
NEEDED = ("config.json", "tokenizer.json", "vocab.txt", "tokenizer_config.json")
# What an exported student also has, for one that was made elsewhere.
ADDED = {
    "extraction.json": json.dumps({"hidden": [], "layers": [], "note": "not extracted by etd-ds"}) + "\n",
    "README.md": "# A distilled BERT encoder\n\nIts initial student was not extracted by etd-ds.\n",
}

# Fields of the spec that follow from the student's own files, or from how the trainer is started.
FROM_STUDENT = ("layers", "hidden", "ffn", "mode", "deepspeed", "gpus", "nodes")


def lay(run: rundir.RunDir, *, student: Path, given: dict[str, Any]) -> None:
    """Write `run.job` and `run.init` from a stock student folder. Raises `EtdError`.

    A folder that was laid before must hold the same spec; then nothing is done, so that a run can continue.
    """
    if missing := [name for name in NEEDED if not (student / name).is_file()]:
        raise errors.RunFolderError(
            f"--student: wanted a folder with {', '.join(NEEDED)}; {student} lacks {', '.join(missing)}; put it "
            "there, a tokenizer from the teacher",
            wanted=list(NEEDED),
            got=missing,
        )
    config = _json(student / "config.json")
    found = shape.from_config(config)
    mode = manifest(student).get("mode", "none")
    job = flags.parse({"layers": found.layers, "hidden": found.hidden, "ffn": found.ffn, "mode": mode, **given})
    if run.job.exists():
        there = run.read_job().model_dump()
        if other := {name: value for name, value in job.model_dump().items() if value != there[name]}:
            says = ", ".join(f"{name} {there[name]!r}, not {value!r}" for name, value in other.items())
            raise errors.RunFolderError(
                f"{run.root}: holds a run with {says}; give another --out, or --run to continue that one"
            )
    else:
        rundir.publish_json(run.job, job)
    if not run.init.exists():
        with rundir.publishing(run.init) as aside:
            for path in student.iterdir():
                if path.is_file():
                    shutil.copyfile(path, aside / path.name)
            for name, text in ADDED.items():
                if not (aside / name).exists():
                    (aside / name).write_text(text, encoding="utf-8")


def manifest(student: Path) -> dict[str, Any]:
    """What a student's `extraction.json` says; nothing where there is none. Raises `RunFolderError`."""
    path = student / "extraction.json"
    return _json(path) if path.exists() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise errors.RunFolderError(f"--student: cannot read {path}: {error}") from None
    if not isinstance(content, dict):
        raise errors.RunFolderError(f"--student: {path} holds no JSON object")
    return content
