"""The one place where the service runs the maths: a warm worker process that is asked over its pipes, one at a time."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etd_ds.contract import events, launch, rundir, spec
from service import tail, tracing
from service.problems import Problem, of_error
from service.settings import Settings, inherited

log = logging.getLogger("etd_jobs")

_WATCH_SECONDS = 0.25
_PATIENCE_SECONDS = 30.0
"""How long a question waits for the worker while that extracts."""
_PROGRESS_SECONDS = 2.0


class Extractor:
    """A `python -m etd_ds.worker` that is started at once, and again when it died. Safe to call from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turn = threading.Lock()
        self._waiting = threading.Semaphore(settings.extraction_waiting + 1)
        self._process: subprocess.Popen[str] | None = None
        self._said: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._number = 0
        self._at = threading.Lock()
        self._into = ""
        """The folder of the extraction that is under way."""
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

    def plan(self, job: spec.JobSpec) -> dict[str, Any]:
        """What the student would be and cost. Raises `Problem`, 422 that names the field for what cannot be made."""
        request = {"verb": "plan", "job": job.model_dump(mode="json", exclude_unset=True)}
        return self._ask(request, patience=_PATIENCE_SECONDS)

    def extract(self, run: rundir.RunDir, *, in_turn: bool = False) -> rundir.Plan:
        """Cut the student of `run.job` into `run.init`; how far it is goes to `run.events`. Raises `Problem`.

        With `in_turn` it waits however many do already.
        """
        request = {"verb": "extract", "run": str(run.root)}
        began, failed = time.time(), "aborted"
        try:
            plan = rundir.Plan.model_validate(self._ask(request, in_turn=in_turn, report=_reporter(run)))
            failed = ""
        except Problem as problem:
            failed = problem.code
            raise
        finally:
            tracing.stage(run.root.name, "extraction", began, time.time(), error=failed)
        return plan

    def revision(self, run: rundir.RunDir, step: int) -> None:
        """Make the checkpoint of a step a student under `run.revisions`. Raises `Problem`."""
        self._ask({"verb": "revision", "run": str(run.root), "step": step}, patience=_PATIENCE_SECONDS)

    def abort(self, run: rundir.RunDir) -> None:
        """End the extraction into this folder if it is under way; whoever waits for it gets a `Problem`."""
        with self._at:
            if self._into == str(run.root) and self._process is not None:
                self._end(self._process)

    def _ask(
        self,
        request: dict[str, Any],
        *,
        patience: float = -1,
        in_turn: bool = False,
        report: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        if not in_turn and not self._waiting.acquire(blocking=False):
            raise self._busy()
        try:
            if not self._turn.acquire(timeout=patience):
                raise self._busy()
            try:
                with self._at:
                    self._into = request["run"] if request["verb"] == "extract" else ""
                return self._answer(request, report)
            finally:
                with self._at:  # whoever aborts has ended the worker before the next one asks
                    self._into = ""
                self._turn.release()
        finally:
            if not in_turn:
                self._waiting.release()

    def _busy(self) -> Problem:
        detail = "The extraction worker has enough to do already; try again later, or make a job with respond-async."
        return Problem(503, "extraction_busy", detail, headers={"Retry-After": "30"})

    def _answer(
        self, request: dict[str, Any], report: Callable[[dict[str, Any]], None] | None = None
    ) -> dict[str, Any]:
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
                if report is not None and said.get("id") == self._number:
                    report(said["progress"])
                self._watch(process, deadline)
                continue
            if "error" in said:
                raise _problem(self._named(said["error"]))
            answer: dict[str, Any] = said["ok"]
            return answer

    def _named(self, error: dict[str, Any]) -> dict[str, Any]:
        """An error in the words of who asked: where the operator keeps things is not for others' eyes."""
        settings = self._settings
        aliases = {str(path): name for names in (settings.teachers, settings.corpora) for name, path in names.items()}
        folders = {str(settings.data_dir): "the server's folder", str(settings.cache): "the server's cache"}
        text = json.dumps(error)
        for path, name in sorted((aliases | folders).items(), key=lambda one: -len(one[0])):
            text = text.replace(json.dumps(path)[1:-1], json.dumps(name)[1:-1])
        found: dict[str, Any] = json.loads(text)
        return found

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
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for the server, which knows what to do with an extraction
        )
        self._said = queue.Queue()
        self._ready.clear()
        self._process = process
        threading.Thread(target=self._listen, args=(process, self._said, began), daemon=True).start()
        threading.Thread(target=_repeat, args=(process,), daemon=True).start()
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


def _repeat(process: subprocess.Popen[str]) -> None:
    """Log what the worker and its libraries print for people, so that it has the form of our lines."""
    assert isinstance(process.stderr, io.TextIOWrapper)
    process.stderr.reconfigure(newline="\n")  # of a progress bar only its last state is a line
    for line in process.stderr:
        if text := tail.shown(line.rstrip("\n")):
            log.warning("the extraction worker says: %s", text)


def _reporter(run: rundir.RunDir) -> Callable[[dict[str, Any]], None]:
    """Writes the worker's progress to the run's events, now and then."""
    told_at = -_PROGRESS_SECONDS

    def report(progress: dict[str, Any]) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= _PROGRESS_SECONDS:
            told_at = time.monotonic()
            with contextlib.suppress(OSError):  # the extraction itself will find out that the disk is full
                part, done, total = (progress[name] for name in ("stage", "done", "total"))
                events.append(run.events, events.Progress(stage="extract", part=part, done=done, total=total))

    return report


def _problem(error: dict[str, Any]) -> Problem:
    status = {"internal": 500, "disk_full": 507}.get(str(error.get("code")))
    return of_error(error) if status is None else Problem(status, str(error["code"]), str(error["message"]))


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    return 0
