"""`etd-ds reproduce`: run a paper's rows, or some of them, at a scale that fits the machine."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from etd_ds.contract import errors, launch


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipes", type=Path, metavar="FILE", help="YAML of rows (default: the paper's, packaged)")
    parser.add_argument(
        "--scale", default="small", metavar="NAME", help="paper, small, long or smoke (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="of runs and scores; continues what is there"
    )
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these rows, by name (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="default: the scale's")
    parser.add_argument("--slots", type=int, default=1, metavar="N", help="commands at a time (default: 1)")
    parser.add_argument(
        "--together", type=int, default=4, metavar="N", help="students that share a teacher's forward pass (default: 4)"
    )
    parser.add_argument(
        "--tasks", nargs="*", metavar="NAME", help="score these downstream tasks, or none (default: the scale's)"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="of the tasks' files, as `etd-ds evaluate --data`")
    parser.add_argument("--list", action="store_true", help="print the rows and the scale's specs, run nothing")
    parser.add_argument(
        "--cache",
        type=Path,
        default=launch.default_cache(),
        metavar="DIR",
        help="of teachers, text and scores (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    from etd_ds.evaluate import recipes, tasks

    found = recipes.read(args.recipes)
    if args.scale not in found.scales:
        known = ", ".join(found.scales)
        raise errors.EtdError(f"scale: wanted one of {known}, got {args.scale!r}", field="scale", got=args.scale)
    for flag, least in (("slots", 1), ("together", 1)):
        if (value := getattr(args, flag)) < least:
            raise errors.EtdError(f"{flag}: wanted {least} or more, got {value}", field=flag, got=value)
    chosen = [found.row(name) for name in args.rows] if args.rows else found.runnable()
    if idle := [row.name for row in chosen if row.spec is None]:
        raise errors.EtdError(f"rows: {idle[0]!r} is no run of its own; leave it out", field="rows", got=idle[0])
    tasks.named(args.tasks or [])
    seeds = tuple(dict.fromkeys(args.seeds or found.scales[args.scale].seeds))
    if args.list:
        for row in chosen:
            print(f"{row.name}: {found.job(row, args.scale, seeds[0]).model_dump_json(exclude_defaults=True)}")
        return 0

    from etd_ds.stages import progress, reproduce, reproduction

    # ended by a scheduler as by a person: the trainers are told, and write their checkpoints
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    workshop = reproduce.Workshop(
        args.out.resolve(),
        args.cache.resolve(),
        slots=args.slots,
        together=args.together,
        tasks=None if args.tasks is None else tuple(args.tasks),
        data=args.data.resolve() if args.data else None,
        tell=lambda text: print(f"etd-ds: {text}", file=sys.stderr, flush=True),
        report=progress.bar(quiet=args.quiet),
    )
    asked = reproduction.Reproduction(
        recipes=found, scale=args.scale, seeds=seeds, rows=tuple(row.name for row in chosen)
    )
    workshop.reproduce(asked)
    return 0
