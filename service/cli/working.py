"""The command of a machine that runs jobs for servers elsewhere, and the flags of everything that runs jobs."""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
import shlex
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etd_ds.contract import errors, launch
from service import tracing
from service.queue import CLUSTER
from service.settings import CPU_SLOTS, Settings, SlurmOptions, cuda_devices, environment


class JsonLines(logging.Formatter):
    """One JSON object a line; JSON escapes whatever control characters came from outside."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {"time": record.created, "level": record.levelname, "logger": record.name}
        job = getattr(record, "job", None)
        entry |= {"message": record.getMessage(), "job": job, "trace_id": tracing.trace_id(job)}
        entry |= getattr(record, "audit", {})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Where data is, what runs here at once, and what is done when it goes wrong."""
    parser.add_argument(
        "--data-dir", type=Path, required=True, metavar="DIR", help="run folders, and the database if it is SQLite"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="teachers, corpora and scores (default: the user's)")
    parser.add_argument("--database", default=environment("DATABASE"), metavar="URL",
                        help="SQLAlchemy URL (default: $ETD_JOBS_DATABASE, or SQLite in the data folder)")  # fmt: skip
    parser.add_argument("--name", default="", metavar="NAME",
                        help="the worker's name (default: this host's, or `local` with SQLite)")  # fmt: skip
    parser.add_argument("--slots", type=int, metavar="N",
                        help=f"ranks that run at once (default: one per GPU; {CPU_SLOTS} without GPUs)")  # fmt: skip
    parser.add_argument("--cpu", action="store_true", help="train on the CPU even if there are GPUs")
    add_settings(
        parser,
        ("grace", float, "seconds that a cancelled trainer has to write its checkpoint"),
        ("max-retries", int, "how often a job whose trainer was lost is started again"),
        ("backoff", float, "seconds before the first such start; doubles each time"),
        ("together", int, "jobs of a tenant that agree in teacher, text and schedule and may share one trainer"),
    )
    parser.add_argument("--lost-after", type=number(float), default=300.0, metavar="X",
                        help="with PostgreSQL: seconds of silence after which this worker's jobs move to others; after "
                             "half of them its trainers save and leave; 0: never (default: %(default)s)")  # fmt: skip
    parser.add_argument("--retry-killed", action="store_true", help="treat killed trainers like lost ones")
    for name in ("tick", "lease"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Settings, name), help=argparse.SUPPRESS)
    parser.add_argument("--trainer-command", type=shlex.split, default=[], help=argparse.SUPPRESS)
    parser.add_argument("--log-json", action="store_true", help="log one JSON object a line")


def add_settings(parser: argparse.ArgumentParser, *flags: tuple[str, type, str]) -> None:
    """Flags (name, type, what it is) of settings that have a default."""
    for name, kind, text in flags:
        default = Settings.__dataclass_fields__[name.replace("-", "_")].default
        shown = f"{text} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=number(kind), default=default, metavar="X", help=shown)


def number(kind: type) -> Callable[[str], Any]:
    """What reads a flag that counts or measures something: a number from 0 on."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = -1
        if not 0 <= value < math.inf:
            wanted = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"wanted {wanted} from 0 on, got {text!r}")
        return value

    return read


def read_flags(args: argparse.Namespace, *, slurm: SlurmOptions | None = None) -> dict[str, Any]:
    """Those flags as fields of `Settings`. Raises `EtdError`."""
    gpus = 0 if args.cpu or slurm else cuda_devices()
    # a cluster is given more than it can run at once, so that it can choose
    default = 4 * slurm.nodes * slurm.gpus_per_node if slurm else gpus or CPU_SLOTS
    slots = args.slots if args.slots is not None else default
    if slots < 1 or (gpus and slots > gpus):
        wanted = f"1 to {gpus} (the GPUs here)" if gpus else "1 or more"
        raise errors.EtdError(f"--slots: wanted {wanted}, got {slots}", field="slots", wanted=wanted, got=slots)
    if args.together < 1:
        raise errors.EtdError(
            f"--together: wanted 1 or more, got {args.together}", wanted="1 or more", got=args.together
        )
    alone = args.database.startswith("sqlite") or not args.database
    name = CLUSTER if slurm else args.name or ("local" if alone else socket.gethostname())
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) is None or (name == CLUSTER and slurm is None):
        wanted = f"letters, digits, ., - and _, at most 64, and not {CLUSTER}"
        raise errors.EtdError(f"--name: wanted {wanted}, got {name!r}", field="name", wanted=wanted, got=name)
    return {
        "data_dir": args.data_dir.resolve(),
        "cache": (args.cache or launch.default_cache()).resolve(),
        "database": args.database,
        "worker": name,
        "slots": slots,
        "gpus": gpus,
        "slurm": slurm,
        "lost_after": 0.0 if alone or slurm else args.lost_after,
        **{field: getattr(args, field) for field in
           ("grace", "max_retries", "backoff", "together", "retry_killed", "tick", "lease")},
        "trainer_command": tuple(args.trainer_command),
    }  # fmt: skip


def set_up_log(args: argparse.Namespace) -> None:
    """Lines on standard error, for people or as JSON; and traces, if the environment asks for them."""
    tracing.set_up()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    if args.log_json:
        logging.getLogger().handlers[0].setFormatter(JsonLines())
    logging.captureWarnings(True)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def configure(commands: Any) -> None:
    """Add the command of this room."""
    text = "run the jobs of a server elsewhere: same PostgreSQL, same data folder"
    parser = commands.add_parser("worker", help=text, description=text)
    add_flags(parser)
    parser.set_defaults(run=_run_worker)


def _run_worker(args: argparse.Namespace) -> int:
    from service import worker

    if not args.database.startswith("postgresql"):
        raise errors.EtdError(
            f"--database: wanted postgresql+psycopg://…, got {args.database or 'SQLite in the data folder'}; SQLite is "
            "for one machine, since its lock is not safe on shared folders: there, `etd-jobs serve` runs the jobs",
            field="database",
            wanted="postgresql+psycopg://…",
            got=args.database,
        )
    set_up_log(args)
    return worker.work(Settings(**read_flags(args)))
