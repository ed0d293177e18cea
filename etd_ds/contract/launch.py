"""Spec and folder in, command line and environment out: the same for the shell, the service and a cluster."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from etd_ds.contract import rundir, spec

REPOSITORY = Path(__file__).resolve().parents[2]

# Exit codes of the trainer. Anything else is a crash.
EXIT_DONE = 0
EXIT_BAD_INPUT = 2
"""The spec or the folder cannot work; starting again will not help."""
EXIT_STOPPED = 85
"""Asked to stop by SIGTERM or SIGUSR1: a checkpoint is written and the same command continues from it."""
EXIT_PEERS_LOST = 86
"""Other ranks are gone or out of reach; once they can be reached the same command continues."""


ATTEMPT = "etd-jobs: attempt "
"""How the line of a run's log begins with which the service begins an attempt."""


def train_argv(
    run: rundir.RunDir,
    job: spec.JobSpec,
    *,
    cache: Path,
    python: str = sys.executable,
    master_port: int | None = None,
    hostfile: Path | None = None,
    devices: Sequence[int] | None = None,
    together: Sequence[rundir.RunDir] = (),
) -> list[str]:
    """The command that distills `run` through the `deepspeed` launcher; started again, it continues.

    `master_port` none takes a free one of this machine; `hostfile` is needed for more than one node;
    `devices` names the GPUs to use, when not the first ones (the launcher ignores CUDA_VISIBLE_DEVICES); `together`
    are other runs that share its teacher and every batch.
    """
    if (job.nodes > 1) != (hostfile is not None):
        raise ValueError(f"nodes: {job.nodes} asked, and a hostfile {'is' if hostfile else 'is not'} given")
    argv = [python, "-m", "deepspeed.launcher.runner"]
    if hostfile is not None:
        argv += ["--hostfile", str(hostfile), "--num_nodes", str(job.nodes)]
    if devices is not None:
        argv += ["--include", "localhost:" + ",".join(str(device) for device in devices)]
    else:
        argv += ["--num_accelerators", str(job.gpus)]
    argv += ["--master_port", str(master_port or free_port())]
    argv += [str(REPOSITORY / "etd_ds" / "train.py")]
    argv += ["--deepspeed", str(ds_config(job)), "--run", *(str(one.root) for one in (run, *together))]
    argv += ["--cache", str(cache)]
    return argv


def ds_config(job: spec.JobSpec) -> Path:
    """The DeepSpeed config file that the spec names."""
    return REPOSITORY / "ds_configs" / f"{job.deepspeed}.json"


def train_env(*, cpu: bool, threads_per_rank: int = 1) -> dict[str, str]:
    """Environment variables that the trainer needs beside the caller's own."""
    env = {"OMP_NUM_THREADS": str(threads_per_rank), "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    if cpu:
        env |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return env


def default_cache() -> Path:
    """Where teachers, tokenized corpora and scores are kept when nobody says: `$XDG_CACHE_HOME/etd-ds`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "etd-ds"


def free_port() -> int:
    """A TCP port that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
