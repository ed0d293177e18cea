"""The one place where the service runs the maths: a warm worker process that is asked over its pipes, one at a time."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from etd_ds.contract import launch, rundir, shape, spec
from service.problems import Problem, of_error
from service.settings import Settings, inherited

log = logging.getLogger("etd_jobs")

_WATCH_SECONDS = 0.25


class Extractor:
    """A `python -m etd_ds.worker` that is started at once, and again when it died. Safe to call from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turn = threading.Lock()
        self._waiting = threading.Semaphore(settings.extraction_waiting + 1)
        self._process: subprocess.Popen[str] | None = None
        self._said: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._number = 0
        self._closed = False
        self._ready = threading.Event()

    @property
    def ready(self) -> bool:
        """Whether the worker has imported its libraries and lives."""
        process = self._process
        return self._ready.is_set() and process is not None and process.poll() is None

    def warm(self) -> None:
        """Start the worker and return at once."""
        with self._turn:
            self._start()

    def close(self) -> None:
        """End the worker; an extraction that runs is lost, and its folder with it."""
        self._closed = True
        if self._process is not None:
            self._end(self._process)

    def check(self, job: spec.JobSpec) -> tuple[shape.EncoderShape, shape.EncoderShape]:
        """Shapes of teacher and student. Raises `Problem` 422 that names the field, before any work."""
        answer = self._ask({"verb": "check", "job": job.model_dump(mode="json", exclude_unset=True)})
        return shape.EncoderShape(**answer["teacher"]), shape.EncoderShape(**answer["student"])

    def plan(self, job: spec.JobSpec) -> dict[str, Any]:
        """What the student would be and cost. Raises `Problem` as `check` does."""
        return self._ask({"verb": "plan", "job": job.model_dump(mode="json", exclude_unset=True)})

    def extract(self, run: rundir.RunDir) -> rundir.Plan:
        """Cut the student of `run.job` into `run.init`. Raises `Problem`; the folder is then of no use."""
        return rundir.Plan.model_validate(self._ask({"verb": "extract", "run": str(run.root)}))

    def revision(self, run: rundir.RunDir, step: int) -> None:
        """Make the checkpoint of a step a student under `run.revisions`. Raises `Problem`."""
        self._ask({"verb": "revision", "run": str(run.root), "step": step})

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if not self._waiting.acquire(blocking=False):
            detail = f"{self._settings.extraction_waiting} requests wait for the extraction already; try again later."
            raise Problem(503, "extraction_busy", detail, headers={"Retry-After": "30"})
        try:
            with self._turn:
                return self._answer(request)
        finally:
            self._waiting.release()

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._start()
        self._number += 1
        assert process.stdin is not None
        deadline = time.monotonic() + self._settings.extraction_timeout
        try:
            process.stdin.write(json.dumps({"id": self._number, **request}) + "\n")
            process.stdin.flush()
        except OSError:
            raise self._died(process) from None
        while True:
            try:
                said = self._said.get(timeout=_WATCH_SECONDS)
            except queue.Empty:
                self._watch(process, deadline)
                continue
            if said is None:
                raise self._died(process)
            if said.get("id") != self._number or "progress" in said:
                self._watch(process, deadline)
                continue
            if "error" in said:
                raise _problem(said["error"])
            answer: dict[str, Any] = said["ok"]
            return answer

    def _start(self) -> subprocess.Popen[str]:
        """The living worker, a new one if need be."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        if self._closed:
            raise Problem(503, "shutting_down", "The server is going down.", headers={"Retry-After": "30"})
        command = self._settings.worker_command or (sys.executable, "-m", "etd_ds.worker")
        began = time.monotonic()
        process = subprocess.Popen(
            [*command, "--cache", str(self._settings.cache)],
            cwd=self._settings.nowhere,
            env=inherited() | {"PYTHONPATH": str(launch.REPOSITORY), "TOKENIZERS_PARALLELISM": "false"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._said = queue.Queue()
        self._ready.clear()
        self._process = process
        threading.Thread(target=self._listen, args=(process, self._said, began), daemon=True).start()
        return process

    def _listen(self, process: subprocess.Popen[str], said: queue.Queue[dict[str, Any] | None], began: float) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                log.warning("the extraction worker said something that is no JSON line")
                continue
            if "ready" in message:
                self._ready.set()
                log.info("extraction worker ready after %.1f s (pid %s)", time.monotonic() - began, process.pid)
            else:
                said.put(message)
        said.put(None)

    def _watch(self, process: subprocess.Popen[str], deadline: float) -> None:
        """End a worker that takes too long or too much memory. Raises the `Problem` that says so."""
        if time.monotonic() > deadline:
            self._end(process)
            detail = (
                f"The extraction took longer than {self._settings.extraction_timeout:g} s, which is the limit here."
            )
            raise Problem(503, "extraction_timeout", detail)
        limit = self._settings.extraction_memory
        if limit and _resident(process.pid) > limit:
            self._end(process)
            detail = f"The extraction took more than {limit / 2**20:.0f} MiB of memory, which is the limit here."
            raise Problem(422, "extraction_too_large", detail)

    def _end(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()

    def _died(self, process: subprocess.Popen[str]) -> Problem:
        self._end(process)
        log.error("the extraction worker died with status %s", process.returncode)
        return Problem(
            503, "extraction_failed", "The extraction worker died; it is started again for the next request."
        )


def _problem(error: dict[str, Any]) -> Problem:
    status = {"internal": 500, "disk_full": 507}.get(str(error.get("code")))
    return of_error(error) if status is None else Problem(status, str(error["code"]), str(error["message"]))


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    return 0
