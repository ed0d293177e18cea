"""`etd-ds report`: what a reproduction found, beside the paper's numbers, as Markdown and HTML."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of `etd-ds reproduce`")
    parser.add_argument("--into", type=Path, metavar="DIR", help="folder of the report (default: DIR/report)")


def run(args: argparse.Namespace) -> int:
    from etd_ds.stages import report

    for path in report.write(args.out, args.into or args.out / "report"):
        print(path)
    return 0
