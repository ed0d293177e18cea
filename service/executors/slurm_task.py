"""One rank under `srun`: `python slurm_task.py MARK STOPPED COMMAND…`. Standard library only; runs on the nodes.

Some clusters signal only the process that `srun` started, so signals are handed on. The first rank of the job that
fails says why in `MARK.first`: Slurm would report the highest code of all, and the others are killed. A rank that
ends with the code STOPPED was asked to, which is no failure for which the others should be killed.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType


def main(mark: Path, stopped: int, argv: list[str]) -> int:
    """Run the command to its end; its exit code, with 128 + n for signal n."""
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def hand_on(number: int, _: FrameType | None) -> None:
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    for wish in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(wish, hand_on)
    child = subprocess.Popen(argv)
    for number in early:
        child.send_signal(number)
    code = child.wait()
    code = code if code >= 0 else 128 - code
    if code:
        with contextlib.suppress(OSError), mark.with_name(mark.name + ".first").open("x") as first:
            first.write(f"{code}\n")
    return 0 if code == stopped else code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
