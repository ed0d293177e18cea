"""Stands in for `python -m etd_ds.worker`: same protocol, no torch. `cache/worker` tells it to misbehave."""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
import time
from pathlib import Path

from etd_ds.contract import errors, rundir, shape, spec, teachers


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cache", type=Path, required=True)
    cache: Path = parser.parse_args().cache
    say({"ready": True, "pid": os.getpid()})
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(lines,), daemon=True).start()
    while True:
        asked = json.loads(lines.get())
        how = (cache / "worker").read_text() if (cache / "worker").exists() else ""
        if how == f"die on {asked['verb']}":
            os._exit(9)
        if how == f"eat on {asked['verb']}":
            hoard = b"x" * (300 << 20)
            threading.Event().wait(len(hoard))
        if how == f"hang on {asked['verb']}":
            (cache / "hangs").touch()
            threading.Event().wait()
        if how == f"lie on {asked['verb']}":
            say({"id": asked["id"], "ok": {"nonsense": True}})
            continue
        say({"id": asked["id"], "progress": {"stage": "score", "done": 1, "total": 2}})
        while how == f"wait on {asked['verb']}" and not (cache / "cut").exists():
            time.sleep(0.01)
        try:
            if asked["verb"] == "revision":
                answer = revision(rundir.RunDir(Path(asked["run"])), asked["step"])
            elif asked["verb"] == "extract":
                answer = extract(rundir.RunDir(Path(asked["run"])))
            else:
                print("\x1b[31m1 %\r99 %", file=sys.stderr, flush=True)  # as libraries do
                answer = plan(asked["job"])
            say({"id": asked["id"], "ok": answer})
        except errors.EtdError as error:
            say({"id": asked["id"], "error": error.as_dict()})
        except OSError:
            say({"id": asked["id"], "error": {"code": "disk_full", "message": "the disk is full"}})


def listen(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def say(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)


def shapes(job: spec.JobSpec) -> tuple[shape.EncoderShape, shape.EncoderShape]:
    where = teachers.locate(job.teacher)
    if isinstance(where, teachers.Hub):
        raise errors.TeacherError(f"teacher: the hub has no {job.teacher!r}", got=job.teacher)
    teacher = shape.from_config(json.loads((where / "config.json").read_text()))
    return teacher, shape.student(job, teacher)


def plan(job: dict[str, object]) -> dict[str, object]:
    asked = spec.JobSpec.model_validate(job)
    teacher, student = shapes(asked)
    costs = dict.fromkeys(("teacher_forward_flops", "forward_flops", "step_flops"), 1)
    sizes = {"teacher_parameters": 1000, "parameters": 250, "compression": 4.0, "teacher_layers": []}
    flops = {"steps": asked.steps, "flops": asked.steps}
    return {"teacher": teacher.model_dump(), "student": student.model_dump(), **costs, **sizes, **flops}


def extract(run: rundir.RunDir) -> dict[str, object]:
    job = run.read_job()
    if job.corpus not in (teachers.EMBEDDED, "mine") and Path(job.corpus).is_dir():
        raise errors.CorpusError(f"corpus: {job.corpus} holds no text", got=job.corpus)
    teacher, student = shapes(job)
    with rundir.publishing(run.init) as folder:
        (folder / "config.json").write_text("{}")
    plan = rundir.Plan(
        teacher=teacher,
        student=student,
        teacher_sha256="0" * 64,
        corpus_sha256=None,
        teacher_layers=(),
        teacher_parameters=1000,
        student_parameters=250,
        compression=4.0,
        seconds=0.01,
        scores_cached=None,
    )
    rundir.publish_json(run.plan, plan)
    return plan.model_dump(mode="json")


def revision(run: rundir.RunDir, step: int) -> dict[str, object]:
    name = f"step-{step}"
    with rundir.publishing(run.revisions / name) as folder:
        (folder / "config.json").write_text(name)
    files = {"config.json": rundir.digest(run.revisions / name / "config.json")}
    made = rundir.Revision(step=step, files=files)
    rundir.publish_json(run.revisions / f"{name}.json", made)
    return made.model_dump(mode="json")


if __name__ == "__main__":
    main()
