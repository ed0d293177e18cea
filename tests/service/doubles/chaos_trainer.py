"""A trainer to be killed: continues from its checkpoints, and shouts if another one is in one of its folders."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

STEPS, STEP_SECONDS = 15, 0.1


def publish(path: Path, value: object) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(value))
    aside.replace(path)


def main() -> int:
    at = sys.argv.index("--run") + 1
    runs = [Path(path) for path in sys.argv[at : sys.argv.index("--cache")]]
    held = [(run / "training").open("w") for run in runs]
    for run, mine in zip(runs, held, strict=True):
        try:
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            (run / "twice").touch()
            return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(85))
    checkpoints = [run / "checkpoint.json" for run in runs]
    first = min(json.loads(one.read_text()) if one.exists() else 0 for one in checkpoints)
    for step in range(first + 1, STEPS + 1):
        time.sleep(STEP_SECONDS)
        for run, checkpoint in zip(runs, checkpoints, strict=True):
            with (run / "steps.txt").open("a") as out:
                out.write(f"{step}\n")
            publish(checkpoint, step)
    result = {"steps": STEPS, "tokens": 1, "seconds": 1.0, "validation_before": None, "validation_after": None}
    for run in runs:
        publish(run / "result.json", {**result, "files": {}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
