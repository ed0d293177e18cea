"""A real server process on loopback, with doubles for the two processes that would load torch."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from service.client import Client

DOUBLES = Path(__file__).parent / "doubles"


@dataclass
class Server:
    """One server on one data folder; it can be killed and started again."""

    root: Path
    options: tuple[str, ...] = ()
    process: subprocess.Popen[str] | None = None
    client: Client = field(default_factory=Client)
    url: str = ""
    key: str = ""
    _said: SimpleQueue[str | None] = field(default_factory=SimpleQueue)

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def start(self, *more: str, cpu: bool = True) -> Server:
        command = [sys.executable, "-c", "import sys; from service.cli import main; sys.exit(main())", "serve"]
        command += ["--port", "0", "--data-dir", str(self.root / "data"), "--cache", str(self.cache), *["--cpu"] * cpu]
        command += ["--worker-command", shlex.join((sys.executable, str(DOUBLES / "worker.py")))]
        command += ["--trainer-command", shlex.join((sys.executable, str(DOUBLES / "trainer.py")))]
        command += ["--backoff", "0.01", *self.options, *more]
        return self.launch(command)

    def launch(self, command: list[str]) -> Server:
        """Run a command that serves, until it listens."""
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self._said = SimpleQueue()
        # all the time, or a server that has much to say would wait for its reader
        threading.Thread(target=_listen, args=(self.process.stderr, self._said), daemon=True).start()
        said = []
        for line in self.says():
            said.append(line)
            if "listening on " in line:
                self.url = line.split("listening on ")[1].split(",")[0]
                break
        else:
            raise AssertionError("the server did not start:\n" + "".join(said))
        self.client.close()
        self.client = Client(self.url, key=self.key)
        return self

    def end(self, how: signal.Signals = signal.SIGTERM) -> str:
        """Signal the server and wait for it; what it said on stderr since it listened."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(timeout=60)
        return "".join(self.says())

    def says(self) -> Iterator[str]:
        """Lines on stderr that were not read yet, and those to come until the server has ended."""
        while (line := self._said.get()) is not None:
            yield line
        self._said.put(None)

    def behave(self, who: str, how: str) -> None:
        self.cache.mkdir(parents=True, exist_ok=True)
        (self.cache / who).write_text(how)

    def run(self, job_id: str) -> Path:
        return self.root / "data" / "jobs" / job_id


def _listen(stderr: IO[str], said: SimpleQueue[str | None]) -> None:
    with stderr:
        for line in stderr:
            said.put(line)
    said.put(None)


def slots(api: Client) -> dict[str, int]:
    """How many slots are free and used, by the metrics."""
    lines = api._http.get("/metrics").text.splitlines()
    return {line.split('"')[1]: int(line.split()[1]) for line in lines if line.startswith("etd_slots{")}


def until(server: Server, job: dict[str, Any], kind: str, **fields: object) -> dict[str, Any]:
    """Watch until an event of this kind with these fields; the events come from the server, so nothing sleeps here."""
    for event in server.client.events(job["id"]):
        if event["type"] == kind and all(event[name] == value for name, value in fields.items()):
            return event
    raise AssertionError(f"the job ended without {kind} {fields}: {server.client.get(job['id'])}")
