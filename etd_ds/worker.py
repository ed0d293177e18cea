"""The warm extraction worker: `python -m etd_ds.worker --cache DIR`, one JSON request and answer a line.

In:  {"id": 1, "verb": "plan", "job": {...}}            out: {"id": 1, "ok": {"parameters": ..., "flops": ..., ...}}
In:  {"id": 2, "verb": "extract", "run": "/abs/run"}    out: {"id": 2, "ok": <Plan>}
     {"id": 3, "verb": "revision", "run": "/abs/run", "step": 100}                     out: {"id": 3, "ok": <Revision>}
Meanwhile: {"id": 2, "progress": {"stage": "...", "done": 3, "total": 136}}; failed: {"id": 2, "error": {...}}.
The first line, once torch and transformers are imported, is {"ready": true, "pid": 123}. Ends with its standard input,
whatever it is doing: whoever asked is gone then, and another server may be at the same work.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from etd_ds.contract import shape, spec

PROGRESS_SECONDS = 0.5


def main() -> None:
    """Serve until standard input ends. Only protocol lines reach the real standard output."""
    parser = argparse.ArgumentParser(prog="etd_ds.worker", description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder of teachers, corpora and scores")
    cache = parser.parse_args().cache
    # Whatever a library prints goes to stderr: the answers' stream is a copy of descriptor 1, which then becomes 2's.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import etd_ds.stages.extract  # noqa: F401  (slow: before the ready line, after stdout is ours)

    _say(answers, {"ready": True, "pid": os.getpid()})
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    while True:
        _say(answers, _answer(requests.get(), cache, answers))


def _listen(requests: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        if line.strip():
            requests.put(line)
    os._exit(0)


def _say(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _answer(line: str, cache: Path, answers: TextIO) -> dict[str, Any]:
    from etd_ds.contract import errors

    number: Any = None
    try:
        request = json.loads(line)
        number = request["id"]
        return {"id": number, "ok": _do(request, cache, answers)}
    except errors.EtdError as refusal:
        return {"id": number, "error": refusal.as_dict()}
    except Exception as failure:  # the process's outermost door: the service must get an answer, the log the traceback
        traceback.print_exc(file=sys.stderr)
        code, message = "internal", "extraction failed for a reason of its own; the server's log has the details"
        if os.strerror(errno.ENOSPC) in str(failure):  # safetensors wraps it in an error of its own
            code, message = "disk_full", "the disk is full; nothing of the student was written"
        return {"id": number, "error": {"code": code, "message": message, "field": None, "wanted": None, "got": None}}


def _do(request: dict[str, Any], cache: Path, answers: TextIO) -> dict[str, Any]:
    from etd_ds.contract import flags, rundir
    from etd_ds.stages import extract

    match request["verb"]:
        case "revision":
            from etd_ds.stages import export

            run = rundir.RunDir(Path(request["run"]))
            return export.revision(run, request["step"]).model_dump(mode="json")
        case "plan":
            job = flags.parse(request["job"])
            return _plan(job, *extract.check(job, cache))
        case "extract":
            told_at = 0.0

            def report(stage: str, done: int, total: int) -> None:
                nonlocal told_at
                if time.monotonic() - told_at >= PROGRESS_SECONDS:
                    told_at = time.monotonic()
                    progress = {"stage": stage, "done": done, "total": total}
                    _say(answers, {"id": request["id"], "progress": progress})

            made = extract.extract(rundir.RunDir(Path(request["run"])), cache=cache, report=report)
            return made.model_dump(mode="json")
    raise ValueError(f"verb: wanted plan, extract or revision, got {request['verb']!r}")


def _plan(job: spec.JobSpec, teacher: shape.EncoderShape, student: shape.EncoderShape) -> dict[str, Any]:
    """What a student would be and cost. Its total is known only when steps are given: epochs need the corpus."""
    from etd_ds import flops
    from etd_ds.contract import shape

    sizes = [flops.parameters(one) for one in (teacher, student)]
    steps = job.steps
    step_flops = flops.distillation(teacher, student, job.seq_length, job.batch_size, dropout=job.dropout > 0)
    return {
        "teacher": teacher.model_dump(),
        "student": student.model_dump(),
        "teacher_layers": [] if job.mode == "none" else list(shape.teacher_layers(job, teacher)),
        "teacher_parameters": sizes[0],
        "parameters": sizes[1],
        "compression": sizes[0] / sizes[1],
        "teacher_forward_flops": flops.forward(teacher, job.seq_length),
        "forward_flops": flops.forward(student, job.seq_length),
        "step_flops": step_flops,
        "steps": steps,
        "flops": None if steps is None else step_flops * steps,
    }


if __name__ == "__main__":
    main()
