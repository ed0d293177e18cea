"""A job as JSON: what was asked, from its row; what happened, from its folder."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

from etd_ds.contract import errors, rundir
from service import tail
from service.queue import Line
from service.routes.context import Context
from service.status import ENDED
from service.store import Job

LOG_LINES = 20


def job_json(here: Context, job: Job, base: str, *, brief: bool = False, line: Line | None = None) -> dict[str, Any]:
    """The JSON of a job; `base` stands before `/jobs` in its links. `brief`, for lists, leaves the log lines out.

    `line` is who waits, if that is known already.
    """
    run = here.run(job)
    url = f"{base}/jobs/{job.id}"
    links = {
        "self": url,
        "events": f"{url}/events",
        "log": f"{url}/log",
        "checkpoints": f"{url}/checkpoints",
        **{wish: f"{url}/{wish}" for wish in ("cancel", "pause", "resume", "retry")},
        "student": f"{url}/student",
    }
    return {
        "id": job.id,
        "status": job.status,
        "spec": job.spec.model_dump(mode="json"),
        "student": _student(run.plan),
        "events": links["events"],
        "links": links,
        "hub": f"students/{job.id}",
        "labels": job.labels,
        "priority": job.priority,
        "webhook": job.webhook or None,
        "created": _time(job.created),
        "started": _time(job.started),
        "ended": _time(job.ended),
        "attempt": job.attempt,
        "asked": job.wish or None,
        "queue": _queue(job, line or here.queue.line()) if job.status == "queued" else None,
        "worker": job.worker or None,
        "together_with": _leader(job),
        "cluster": _cluster(run) if job.status == "running" else None,
        "progress": tail.extraction(run.events) if job.status == "extracting" else tail.progress(run.events),
        "error": {"code": job.error_code, "message": job.error_message} if job.error_code else None,
        "log_tail": tail.last_lines(run.log, LOG_LINES) if job.status in ENDED and not brief else [],
        "result": _result(run, url) if job.status == "succeeded" else None,
    }


def _student(plan: Path) -> dict[str, Any] | None:
    try:
        found = _plan(plan)
    except errors.RunFolderError:
        return None
    return {
        "layers": found.student.layers,
        "hidden": found.student.hidden,
        "heads": found.student.heads,
        "ffn": found.student.ffn,
        "parameters": found.student_parameters,
        "teacher_parameters": found.teacher_parameters,
        "compression": found.teacher_parameters / found.student_parameters,
        "teacher_layers": list(found.teacher_layers),
        "teacher": found.teacher.model_dump(),
        "teacher_sha256": found.teacher_sha256,
        "extraction_seconds": found.seconds,
        "scores_cached": found.scores_cached,
    }


@lru_cache(maxsize=4096)
def _plan(path: Path) -> rundir.Plan:
    """Plans are written once, so they are read once."""
    return rundir.RunDir(path.parent).read_plan()


def _queue(job: Job, line: Line) -> dict[str, Any]:
    ahead, there = line.places.get(job.id, 0), line.workers
    fitting = [worker for worker in there if worker.slots >= job.ranks]
    if not fitting:
        largest = max((worker.slots for worker in there), default=0)
        reason = f"needs {job.ranks} slots; the largest worker has {largest}" if there else "no worker is there"
    elif ahead:
        reason = f"{ahead} job{'s' if ahead > 1 else ''} before it"
    elif all(worker.free < job.ranks for worker in fitting):
        best = max(fitting, key=lambda worker: worker.free)
        reason = f"needs {job.ranks} of {best.slots} slots, {best.free} free"
    elif job.retries:
        reason = f"its trainer was lost; try {job.retries + 1} begins at {_time(job.not_before)}"
    else:
        reason = "about to start"
    return {"position": ahead + 1, "reason": reason}


def _leader(job: Job) -> str | None:
    """The job in whose trainer it is or was trained, and whose log that printed to; none if it has its own."""
    leader = job.trainer.rpartition(":")[0]
    return leader if leader != job.id and leader else None


def _cluster(run: rundir.RunDir) -> dict[str, Any] | None:
    """What the cluster last said of the attempt; none when there is no cluster."""
    try:
        found: dict[str, Any] = json.loads((run.root / "slurm" / "state.json").read_bytes())
    except FileNotFoundError:
        return None
    return found


def _result(run: rundir.RunDir, url: str) -> dict[str, Any] | None:
    try:
        result = run.read_result()
    except errors.RunFolderError:
        return None
    if result is None:
        return None
    values = result.model_dump()
    for name, digest in values["files"].items():
        digest["url"] = f"{url}/student/{name}"
    return values


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
