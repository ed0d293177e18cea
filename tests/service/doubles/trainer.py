"""Stands in for `deepspeed … etd_ds/train.py`: a launcher with two ranks that keep the contract, without any maths.

`cache/trainer` tells how it goes: "wait" (for `cache/go`, after the first step), "crash", "die" (a rank is killed),
"deaf" (ignores SIGTERM), "full" (disk), "refuse", "silent" (exit 0 without a result), "picky" (crashes when a spec's
learning rate is 1), or nothing: it just trains. All runs that it is given go in step.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from etd_ds.contract import events, launch, rundir

stopped = False


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, nargs="+", required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--local_rank", type=int, default=-1)
    args = parser.parse_args()
    if args.local_rank >= 0:
        return rank([rundir.RunDir(path) for path in args.run], args.cache, args.local_rank)
    ranks = [subprocess.Popen([sys.executable, *sys.argv, f"--local_rank={number}"]) for number in range(2)]
    while None in (codes := [process.poll() for process in ranks]) and not any(codes):
        time.sleep(0.01)
    for process in ranks:  # as the real launcher: one failed, so all go, and a signal n becomes 256 - n
        process.terminate()
        process.wait()
    return next((code % 256 for code in codes if code), 0)


def rank(runs: list[rundir.RunDir], cache: Path, number: int) -> int:
    run = runs[0]
    how = (cache / "trainer").read_text() if (cache / "trainer").exists() else ""

    def stop(*_: object) -> None:
        global stopped
        stopped = True

    signal.signal(signal.SIGTERM, signal.SIG_IGN if how == "deaf" else stop)
    (cache / f"rank-{run.root.name}-{number}").write_text(str(os.getpid()))
    if number:
        while not (stopped or (run.root / "over").exists()):
            time.sleep(0.01)
        return launch.EXIT_STOPPED if stopped else 0
    while not (cache / f"rank-{run.root.name}-1").exists():  # the rendezvous
        time.sleep(0.01)
    try:
        return train(runs, cache, how)
    finally:
        (run.root / "over").touch()


def train(runs: list[rundir.RunDir], cache: Path, how: str) -> int:
    (runs[0].root / "over").unlink(missing_ok=True)
    steps = runs[0].read_job().steps or 5
    first = min(newest(run) for run in runs)

    def note(event: events.Event) -> None:
        for run in runs:
            events.append(run.events, event)

    note(events.Attempt(step=first, steps=steps, world_size=2, precision="fp32", device="cpu", sequences=10))
    print("training begins", flush=True)
    if (code := fails(runs, how, note)) is not None:
        return code
    for step in range(first + 1, steps + 1):
        note(
            events.Step(step=step, steps=steps, epoch=0.1 * step, loss=1 / step, terms={"hidden": 1 / step},
                        learning_rate=1e-4, tokens=100 * step, tokens_per_second=50.0, eta_seconds=1.0)
        )  # fmt: skip
        print(f"\rstep {step}", flush=True)
        for run in runs:
            rundir.publish_json(run.checkpoints / "latest.json", {"step": step})
        note(events.Checkpoint(step=step, name=f"step-{step}"))
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        while how in ("wait", "deaf") and not stopped and not (cache / "go").exists():
            time.sleep(0.01)
        if stopped:
            note(events.End(outcome="stopped", step=step))
            return launch.EXIT_STOPPED
    note(events.Validation(step=steps, loss=0.5, terms={}))
    for run in runs:
        finish(run, steps)
    return 0


def newest(run: rundir.RunDir) -> int:
    latest = run.checkpoints / "latest.json"
    return int(json.loads(latest.read_text())["step"]) if latest.exists() else 0


def fails(runs: list[rundir.RunDir], how: str, note: Callable[[events.Event], None]) -> int | None:
    """The exit code of a trainer that fails at its beginning."""
    match how:
        case "refuse":
            note(events.End(outcome="failed", step=0, code="hardware", message="precision: fp16 needs a GPU"))
            return launch.EXIT_BAD_INPUT
        case "crash":
            print("RuntimeError: the loss is NaN", flush=True)
            return 1
        case "picky" if any(run.read_job().learning_rate == 1 for run in runs):
            print("RuntimeError: the loss is NaN", flush=True)
            return 1
        case "full":
            print("OSError: [Errno 28] No space left on device", flush=True)
            return 1
        case "silent":
            return 0
    return None


def finish(run: rundir.RunDir, steps: int) -> None:
    (run.checkpoints / f"step-{steps}").mkdir(exist_ok=True)
    with rundir.publishing(run.student) as folder:
        for name in rundir.STUDENT_FILES:
            (folder / name).write_bytes(name.encode() * 10_001)
        header = json.dumps({"w": {"dtype": "U8", "shape": [3_000_000], "data_offsets": [0, 3_000_000]}}).encode()
        weights = len(header).to_bytes(8, "little") + header + bytes(range(250)) * 12_000
        (folder / "model.safetensors").write_bytes(weights)
    files = {path.name: rundir.digest(path) for path in run.student.iterdir()}
    events.append(run.events, events.End(outcome="done", step=steps))
    rundir.publish_json(
        run.result,
        rundir.Result(steps=steps, tokens=100, seconds=1.0, validation_before=None, validation_after=None, files=files),
    )


if __name__ == "__main__":
    sys.exit(main())
