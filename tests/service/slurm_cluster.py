"""A real Slurm cluster on loopback: two nodes of this machine, with daemons that the tests may kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from etd_ds.contract import launch

SCRIPTS = Path(__file__).parents[1] / "slurm"
NEEDED = ("slurmctld", "slurmd", "sbatch", "squeue", "srun", "munged")
NODES = 2


def missing(*more: str) -> str:
    """Why there can be no cluster here; empty if there can. `more` are further programs that it takes."""
    lacking = [name for name in (*NEEDED, *more) if shutil.which(name) is None]
    if lacking:
        return f"no {', '.join(lacking)}: apt-get install slurmctld slurmd slurm-client munge [slurmdbd mariadb-server]"
    return "" if os.geteuid() == 0 else "the daemons of a cluster need root"


@dataclass
class Cluster:
    """`start` also starts again what was ended."""

    folder: Path
    ports: tuple[int, ...] = ()
    accounting: bool = False
    """With slurmdbd: only the account `lab` may run jobs."""

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    def start(self) -> None:
        if not self.ports:
            self.ports = tuple(launch.free_port() for _ in range(1 + NODES))
        env = os.environ | {"NODE": "n"}
        if self.accounting:
            env |= {"NODE": "a", "ACCOUNTING": str(launch.free_port())}
        command = [str(SCRIPTS / "start.sh"), str(self.folder), *map(str, self.ports)]
        # the daemons keep what they get: a pipe would never end
        log = self.folder.with_suffix(".log")
        with log.open("ab") as out:
            done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=90)
        assert done.returncode == 0, log.read_text()

    def stop(self) -> None:
        subprocess.run([str(SCRIPTS / "stop.sh"), str(self.folder)], stdin=subprocess.DEVNULL, timeout=120)

    def end(self, daemon: str, how: signal.Signals) -> None:
        """Signal `slurmctld`, `n1` or `n2`; the job steps of a node live on.

        A controller that is killed forgets its newest jobs and gives their numbers away; SIGTERM lets it write first.
        """
        os.kill(int((self.folder / "pid" / f"{daemon}.pid").read_text()), how)

    def jobs(self, name: str) -> list[list[str]]:
        """(id, state, comment) of every job of that name, the ended ones too."""
        command = ["squeue", "-h", "--all", "--states=all", f"--name={name}", "--format=%i|%T|%k"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        return [line.split("|") for line in listed.splitlines()]

    def occupy(self) -> str:
        """Hand in somebody else's job that wants all nodes for itself; its number."""
        command = ["sbatch", "--parsable", f"--nodes={NODES}", "--exclusive", "--wrap=sleep 600", "--output=/dev/null"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    def cancel(self, number: str) -> None:
        subprocess.run(["scancel", number], check=True, timeout=30)
