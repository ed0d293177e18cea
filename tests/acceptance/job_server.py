"""A real job server process, and real jobs small enough for two cores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from etd_ds.contract import launch

# Two ranks of a real DeepSpeed run on CPU, real teacher, real text: seconds of training beside seconds of imports.
SMALL: dict[str, Any] = {
    "layers": 3,
    "hidden": 192,
    "mode": "impt",
    "importance_sentences": 64,
    "mlm_head_steps": 3,
    "seq_length": 64,
    "batch_size": 4,
    "steps": 6,
    "gpus": 2,
    "validation_sequences": 4,
    "validate_every": 3,
    "checkpoint_every": 3,
    "log_every": 1,
}


class Server:
    """`etd-jobs serve` as a user would start it, on loopback."""

    def __init__(self, data_dir: Path, *, cache: Path | None = None, log: Path | None = None) -> None:
        self.data_dir = data_dir
        self.cache = cache or data_dir.with_name("cache")
        self.log = log or data_dir.with_name("server.log")
        self.process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(timeout=300)

    def start(self) -> None:
        port = launch.free_port()
        argv = [sys.executable, "-m", "service.cli", "serve", "--host", "127.0.0.1", "--port", str(port)]
        argv += ["--data-dir", str(self.data_dir), "--cache", str(self.cache)]
        argv += ["--slots", "2", "--max-retries", "0"]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(argv, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        self.http.base_url = httpx.URL(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                self.http.get("/healthz")
                return
            except httpx.TransportError:
                time.sleep(0.1)
        raise RuntimeError(f"the server did not come up:\n{self.log.read_text()}")

    def kill(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """End the server process alone: its jobs are none of its children's business."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(sig)
            self.process.wait(timeout=60)

    def create(self, **fields: Any) -> dict[str, Any]:
        answer = self.http.post("/jobs", json={**SMALL, **fields})
        assert answer.status_code == 201, answer.text
        job: dict[str, Any] = answer.json()
        return job

    def get(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self.http.get(f"/jobs/{job_id}").raise_for_status().json()
        return job

    def events(self, job_id: str, last: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
        """(id, event) of the job's server-sent events, until the server ends the stream."""
        headers = {"Last-Event-ID": last} if last else {}
        with self.http.stream("GET", f"/jobs/{job_id}/events", headers=headers, timeout=300) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            event_id = ""
            for line in stream.iter_lines():
                if line.startswith("id:"):
                    event_id = line[3:].strip()
                elif line.startswith("data:"):
                    yield event_id, json.loads(line[5:])

    def wait(self, job_id: str, until: tuple[str, ...], seconds: float = 240) -> dict[str, Any]:
        """The job as soon as its status is one of `until`; fails with its log after so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            job = self.get(job_id)
            if job["status"] in until:
                return job
            time.sleep(0.2)
        raise AssertionError(f"still {job['status']} after {seconds} s:\n{self.http.get(f'/jobs/{job_id}/log').text}")


def processes_of(folder: Path) -> dict[int, str]:
    """Living processes (pid: command line) that name `folder` in their arguments; the tests' own excepted."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(folder) in command and state != "Z":
                found[int(entry.name)] = command
    return found
