"""The command-line flags of `etd-jobs serve` that say how jobs go to a Slurm cluster."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from etd_ds.contract import errors
from service.settings import SlurmOptions

# (field of SlurmOptions, type, placeholder, help)
_FLAGS: tuple[tuple[str, type, str, str], ...] = (
    ("nodes", int, "N", "most nodes that a job may ask for"),
    ("gpus_per_node", int, "N", "most GPUs per node that a job may ask for; on a cluster without GPUs, CPU ranks"),
    ("partition", str, "NAME", "partition (default: the cluster's)"),
    ("account", str, "NAME", "account that is charged"),
    ("qos", str, "NAME", "quality of service"),
    ("constraint", str, "FEATURES", "features that the nodes must have"),
    ("time_minutes", int, "MINUTES", "time limit of one attempt; a longer job goes on in the next attempt"),
    ("warning", int, "SECONDS", "how long before its time limit an attempt is told to write its checkpoint and leave"),
    ("cpus_per_task", int, "N", "CPU cores for each rank"),
    ("image", str, "IMAGE", "container image of the trainer, for srun --container-image"),
    ("python", str, "PATH", "Python interpreter on the nodes, or in the image"),
    ("repository", Path, "DIR", "etd-ds on the nodes, or in the image"),
    ("nice_step", int, "N", "`nice` added for each step of a job's priority below 100; 0: priorities stay ours"),
    ("poll", float, "SECONDS", "time between two looks at the cluster's queue"),
    ("settle", float, "SECONDS", "how long the nodes' files may take to be seen by this server"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """Add `--slurm` and what goes with it."""
    group = parser.add_argument_group(
        "Slurm", "Jobs go to a Slurm cluster; data folder and cache must be on its disks."
    )
    group.add_argument("--slurm", action="store_true", help="run jobs on the Slurm cluster of this machine's commands")
    defaults = {field.name: field.default for field in dataclasses.fields(SlurmOptions)}
    for name, kind, placeholder, text in _FLAGS:
        shown = f" (default: {defaults[name]})" if defaults[name] not in ("", 0) else ""
        flag = "--slurm-" + name.replace("_", "-")
        group.add_argument(flag, type=kind, default=None, metavar=placeholder, help=text + shown)
    group.add_argument("--slurm-line", action="append", default=[], metavar="LINE",
                       help="a further line of the batch script: #SBATCH …, module load …; repeatable")  # fmt: skip


def read(args: argparse.Namespace) -> SlurmOptions | None:
    """The options, or `None` without `--slurm`. Raises `EtdError`."""
    given = {name: value for name, *_ in _FLAGS if (value := getattr(args, f"slurm_{name}")) is not None}
    if args.slurm_line:
        given["lines"] = tuple(args.slurm_line)
    if not args.slurm:
        if given:
            flag = "--slurm-" + next(iter(given)).replace("_", "-")
            raise errors.EtdError(f"{flag}: wanted only together with --slurm", wanted="--slurm")
        return None
    for name, value in given.items():
        least = 1 if name in ("nodes", "gpus_per_node") else 0
        if isinstance(value, int | float) and value < least:
            flag = "--slurm-" + name.replace("_", "-")
            raise errors.EtdError(f"{flag}: wanted {least} or more, got {value}", wanted=f"{least} or more", got=value)
    options = SlurmOptions(cpu=args.cpu, **given)
    if options.time_minutes and options.time_minutes * 60 <= options.warning:
        wanted = f"more than the {options.warning} s of --slurm-warning"
        got = f"{options.time_minutes} min"
        raise errors.EtdError(f"--slurm-time-minutes: wanted {wanted}, got {got}", wanted=wanted, got=got)
    return options
