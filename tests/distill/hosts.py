"""Two machines made of namespaces: own network, process ids and host name each, a link between them, and an sshd."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

NEEDED = ("ip", "unshare", "nsenter", "sshd", "ssh", "ssh-keygen", "pdsh")
NAMES = ("node-a", "node-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
_PATH = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))


def missing() -> str:
    """Why there can be no such machines here; empty if there can."""
    lacking = [name for name in NEEDED if shutil.which(name, path=_PATH) is None]
    if lacking:
        return f"no {', '.join(lacking)}: apt-get install iproute2 openssh-server pdsh"
    allowed = os.geteuid() == 0 and subprocess.run(["unshare", "--net", "--pid", "--fork", "true"]).returncode == 0
    return "" if allowed else "namespaces cannot be made here"


@dataclass
class Hosts:
    """Both machines; `folder` holds their keys, and a `bin` with the ssh that they use."""

    folder: Path
    inits: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        self._write_keys()
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            self.inits.append(self._boot(name, address))
        first, second = (self._inside(number) for number in (0, 1))
        _run(
            "ip",
            "link",
            "add",
            "eth0",
            "netns",
            str(first),
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            str(second),
        )
        for number, address in enumerate(ADDRESSES):
            self._ip(number, "address", "add", f"{address}/24", "dev", "eth0")
            self._ip(number, "link", "set", "lo", "up")
            self._ip(number, "link", "set", "eth0", "up")
        deadline = time.monotonic() + 60
        while any(self.on(0, "ssh", name, "true").wait() for name in NAMES):
            assert time.monotonic() < deadline, "no sshd answers"
            time.sleep(0.1)

    def stop(self) -> None:
        """The kernel ends everything that runs in a process namespace with its first process."""
        for init in self.inits:
            init.kill()
            init.wait()

    def link(self, state: str) -> None:
        """Cut the link (`down`) or mend it (`up`)."""
        self._ip(0, "link", "set", "eth0", state)

    def on(self, number: int, *command: str, **options: object) -> subprocess.Popen[bytes]:
        """Start a command on a machine."""
        path = f"PATH={self.folder / 'bin'}:{_PATH}"
        inside = ["nsenter", "--all", f"--target={self._inside(number)}", f"--wd={Path.cwd()}", "env", path]
        return subprocess.Popen([*inside, *command], **options)

    def processes(self, number: int, script: Path) -> list[int]:
        """What runs this script on a machine."""
        found = psutil.Process(self._inside(number)).children(recursive=True)
        return [one.pid for one in found if str(script) in one.cmdline()[:4]]

    def _inside(self, number: int) -> int:
        """The first process of a machine, as this one numbers it."""
        return psutil.Process(self.inits[number].pid).children()[0].pid

    def _ip(self, number: int, *command: str) -> None:
        _run("nsenter", "--net", f"--target={self._inside(number)}", "ip", *command)

    def _boot(self, name: str, address: str) -> subprocess.Popen[bytes]:
        conf = self.folder / f"{name}.conf"
        conf.write_text(
            f"ListenAddress 0.0.0.0\nHostKey {self.folder}/key\nAuthorizedKeysFile {self.folder}/key.pub\n"
            "PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nClientAliveInterval 3\n"
        )
        script = (
            f"mount --bind {self.folder}/hosts /etc/hosts && hostname {name} && mkdir -p /run/sshd && "
            f"exec {shutil.which('sshd', path=_PATH)} -D -e -f {conf}"
        )
        command = ["unshare", "--net", "--pid", "--uts", "--mount", "--fork", "--kill-child", "--mount-proc"]
        init = subprocess.Popen(
            [*command, "sh", "-c", script], stdin=subprocess.DEVNULL, stderr=(self.folder / f"{name}.log").open("wb")
        )
        deadline = time.monotonic() + 60
        while not any("sshd" in one.name() for one in psutil.Process(init.pid).children()):
            assert init.poll() is None, (self.folder / f"{name}.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return init

    def _write_keys(self) -> None:
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "key"))
        known = "".join(f"{address} {name}\n" for name, address in zip(NAMES, ADDRESSES, strict=True))
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + known)
        (self.folder / "config").write_text(
            f"IdentityFile {self.folder}/key\nUser root\nBatchMode yes\nStrictHostKeyChecking no\nLogLevel ERROR\n"
            "UserKnownHostsFile /dev/null\nConnectTimeout 10\nServerAliveInterval 3\nServerAliveCountMax 2\n"
        )
        wrapper = self.folder / "bin" / "ssh"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.folder}/config "$@"\n')
        wrapper.chmod(0o755)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": _PATH}, timeout=30)
    assert done.returncode == 0, (command, done.stderr)
