"""`etd-ds extract`: cut a student from a teacher into a stock Hugging Face folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from etd_ds.contract import errors, flags, launch
from etd_ds.stages import extract, progress


def configure(parser: argparse.ArgumentParser) -> None:
    """Flags: where to write, the cache, and the job spec's own."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write, a new or an empty one")
    parser.add_argument(
        "--cache",
        type=Path,
        default=launch.default_cache(),
        metavar="DIR",
        help="of teachers, text and scores (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    flags.add(parser)


def run(args: argparse.Namespace) -> int:
    """Extract and print what was decided as JSON."""
    job = flags.read(args)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise errors.EtdError(f"out: wanted a new or empty folder, {args.out} holds something", field="out")
    extract.check(job, args.cache)
    plan = extract.cut(job, args.out, cache=args.cache, report=progress.bar(quiet=args.quiet))
    print(plan.model_dump_json(indent=2))
    return 0
