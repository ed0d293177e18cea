"""`etd-ds report`: what a reproduction found, beside the paper's numbers, as Markdown and HTML."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--out", type=Path, metavar="DIR", help="the folder of `etd-ds reproduce`")
    source.add_argument("--results", type=Path, metavar="FILE", help="a report's results.json instead")
    parser.add_argument("--into", type=Path, metavar="DIR", help="folder of the report (default: report, beside them)")
    parser.add_argument(
        "--table", nargs="*", metavar="ROW", help="print one table of these rows (default: all), and write nothing"
    )


def run(args: argparse.Namespace) -> int:
    from etd_ds.stages import findings, report, reproduction

    if args.results:
        found, beside = findings.read(args.results), args.results.parent
    else:
        found, beside = findings.collect(args.out, reproduction.read(args.out)), args.out
    if args.table is not None:
        print(report.summary(found, [found.asked.recipes.row(name).name for name in args.table]))
        return 0
    for path in report.write(found, args.into or beside / "report"):
        print(path)
    return 0
