"""Ranks that a cluster starts itself: the command of each, and who it is. No launcher stands in between."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from etd_ds.contract import launch, rundir, spec

# Below the ports that Linux gives to outgoing connections (32768 and more).
_FIRST_PORT, _PORTS = 20_000, 12_000


def rank_argv(
    run: rundir.RunDir,
    job: spec.JobSpec,
    *,
    cache: Path,
    python: str = sys.executable,
    repository: Path = launch.REPOSITORY,
    together: Sequence[rundir.RunDir] = (),
) -> list[str]:
    """The command of every rank of a run, and of those that share its teacher and every batch.

    `python` and `repository` are those of the machines that run it.
    """
    argv = [python, str(repository / "etd_ds" / "train.py")]
    argv += ["--deepspeed", str(repository / "ds_configs" / launch.ds_config(job).name)]
    return [*argv, "--run", *(str(one.root) for one in (run, *together)), "--cache", str(cache)]


def slurm_env(environ: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_SIZE, MASTER_ADDR and MASTER_PORT of a task that `srun` started.

    Empty for every other process: a launcher's rank has them, a batch script's own process is no rank.
    """
    if "RANK" in environ or "SLURM_STEP_NUM_TASKS" not in environ:
        return {}
    local = _tasks_on_node(environ["SLURM_STEP_TASKS_PER_NODE"], int(environ["SLURM_NODEID"]))
    devices = environ.get("CUDA_VISIBLE_DEVICES", "")
    own_device = local > 1 and devices not in ("", "NoDevFiles") and "," not in devices
    return {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": environ["SLURM_STEP_NUM_TASKS"],
        # with --gpus-per-task each task sees one device only, its own
        "LOCAL_RANK": "0" if own_device else environ["SLURM_LOCALID"],
        "LOCAL_SIZE": str(local),
        "MASTER_ADDR": environ.get("MASTER_ADDR") or first_host(environ["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": environ.get("MASTER_PORT") or str(_FIRST_PORT + int(environ["SLURM_JOB_ID"]) % _PORTS),
    }


def first_host(nodes: str) -> str:
    """The first of Slurm's node list: `gpu[003-005,9],x1` begins with `gpu003`. Rank 0 runs there."""
    match = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\])?([^,\[]*)", nodes)
    if match is None:
        raise ValueError(f"SLURM_STEP_NODELIST: wanted a list of nodes, got {nodes!r}")
    return "".join(part or "" for part in match.groups())


def _tasks_on_node(counts: str, node: int) -> int:
    """`2(x3),1` means 2, 2, 2, 1."""
    every: list[int] = []
    for part in counts.split(","):
        count, _, times = part.partition("(x")
        every += [int(count)] * int(times.rstrip(")") or 1)
    return every[node]
