"""A real `etd-jobs worker` process beside a server, on the same data folder and database."""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass

import psutil
from server_process import DOUBLES, Server


@dataclass
class Worker:
    """One worker with a name of its own; it can be killed and started again."""

    server: Server
    database: str
    name: str
    options: tuple[str, ...] = ()
    double: bool = True
    """Whether trainers without maths stand in for the real one."""
    process: subprocess.Popen[str] | None = None

    def start(self, *more: str) -> Worker:
        server = self.server
        command = [sys.executable, "-m", "service.cli", "worker", "--cpu", "--name", self.name, "--slots", "1"]
        command += ["--data-dir", str(server.root / "data"), "--cache", str(server.cache), "--database", self.database]
        if self.double:
            command += ["--trainer-command", shlex.join((sys.executable, str(DOUBLES / "trainer.py")))]
        command += ["--backoff", "0.01", "--lost-after", "6", "--lease", "1", "--tick", "0.1", *self.options, *more]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if "runs jobs of" in line:
                return self
        raise AssertionError("the worker did not start:\n" + "".join(said))

    def everything(self) -> list[psutil.Process]:
        """Its process, supervisors, trainers."""
        assert self.process is not None
        mine = psutil.Process(self.process.pid)
        return [mine, *mine.children(recursive=True)]

    def signal_all(self, how: signal.Signals) -> list[psutil.Process]:
        """What happens to all of a machine's processes at once; which they are."""
        there = self.everything()
        for one in there:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(how)
        return there

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        self.process.communicate(timeout=60)
        return self.process.returncode
