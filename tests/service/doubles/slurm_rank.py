"""Stands in for `etd_ds/train.py` as one task of `srun`: keeps the contract of ranks and folder, without any maths.

`cache/trainer` tells how it goes: "wait" (for `cache/go`, after the first step), "deaf" (and ignores SIGTERM), "die"
(the second rank is killed after the first step), or nothing: it just trains. What a rank is, it writes to the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

from etd_ds.contract import cluster, errors, events, launch, rundir
from etd_ds.stages.attempt import Attempt

heard: list[int] = []


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    args = parser.parse_args()
    run, cache = rundir.RunDir(args.run), args.cache
    how = (cache / "trainer").read_text() if (cache / "trainer").exists() else ""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN if how == "deaf" else lambda number, _: heard.append(number))
    me = cluster.slurm_env(os.environ) | {"node": os.environ["SLURMD_NODENAME"], "pid": str(os.getpid())}
    me["devices"] = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    rundir.publish_json(cache / f"rank-{run.root.name}-{me['RANK']}", me)
    if me["RANK"] == "0":
        return train(run, cache, how, int(me["WORLD_SIZE"]))
    while not heard and not run.result.exists():
        if how == "die" and any(event.type == "step" for event in events.read(run.events)):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
    return launch.EXIT_STOPPED if heard else launch.EXIT_DONE


def train(run: rundir.RunDir, cache: Path, how: str, world_size: int) -> int:
    attempt, steps, latest = Attempt(run), run.read_job().steps or 5, run.checkpoints / "latest.json"
    first = json.loads(latest.read_text())["step"] if latest.exists() else 0
    there = [cache / f"rank-{run.root.name}-{number}" for number in range(world_size)]
    while not heard and not all(one.exists() for one in there):  # the rendezvous
        time.sleep(0.02)
    attempt.say(
        events.Attempt(step=first, steps=steps, world_size=world_size, precision="fp32", device="cpu", sequences=9)
    )
    for step in range(first + 1, steps + 1):
        attempt.say(
            events.Step(step=step, steps=steps, epoch=0.1 * step, loss=1 / step, terms={}, learning_rate=1e-4,
                        tokens=100 * step, tokens_per_second=50.0, eta_seconds=1.0)
        )  # fmt: skip
        rundir.publish_json(latest, {"step": step})
        while how and not heard and not (cache / "go").exists():
            attempt.guard()
            time.sleep(0.02)
        if heard:
            attempt.say(events.End(outcome="stopped", step=step, message=signal.Signals(heard[0]).name))
            return launch.EXIT_STOPPED
    with rundir.publishing(run.student) as folder:
        for name in rundir.STUDENT_FILES:
            (folder / name).write_text(name)
    files = {path.name: rundir.digest(path) for path in run.student.iterdir()}
    attempt.guard()
    attempt.say(events.End(outcome="done", step=steps))
    rundir.publish_json(
        run.result,
        rundir.Result(steps=steps, tokens=9, seconds=1.0, validation_before=None, validation_after=None, files=files),
    )
    return launch.EXIT_DONE


if __name__ == "__main__":
    try:
        code = main()
    except errors.RunFolderError as error:
        print(error, flush=True)
        code = launch.EXIT_BAD_INPUT
    sys.exit(code)
