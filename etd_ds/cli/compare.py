"""`etd-ds compare`: a student beside its teacher."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from etd_ds.contract import errors, launch, teachers


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--teacher", default=teachers.EMBEDDED, help="as in a job spec (default: %(default)s)")
    parser.add_argument("--student", required=True, type=Path, metavar="DIR", help="folder of the student")
    parser.add_argument("--corpus", default="embedded", help="where the sentences come from (default: %(default)s)")
    parser.add_argument(
        "--sentences", type=int, default=200, metavar="N", help="held-out sentences to embed (default: %(default)s)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=launch.default_cache(),
        metavar="DIR",
        help="of teachers, text and scores (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")


def run(args: argparse.Namespace) -> int:
    if args.sentences < 3:
        raise errors.EtdError(f"sentences: wanted 3 or more, got {args.sentences}", field="sentences")
    if not (args.student / "config.json").is_file():
        raise errors.EtdError(
            f"student: wanted a Hugging Face folder, got {args.student} without a config.json", field="student"
        )
    from transformers.utils import logging

    from etd_ds.bert import checkpoint
    from etd_ds.data import held_out
    from etd_ds.evaluate import compare

    # not that the poolers are left out, and no bars of its own
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    teacher = checkpoint.resolve(args.teacher, args.cache)
    sentences = held_out.sentences(args.corpus, args.sentences)
    found = compare.compare(teacher.folder, args.student, sentences, progress=not args.json)
    if args.json:
        print(json.dumps(found.as_dict()))
        return 0
    table = Table(title=f"{args.student} beside its teacher {args.teacher}")
    for heading in ("", "teacher", "student", "ratio"):
        table.add_column(heading, justify="left" if not heading else "right")
    a, b = found.teacher, found.student
    for name, x, y, form in (
        ("parameters", a.parameters, b.parameters, "{:,}"),
        ("model.safetensors (MB)", a.megabytes, b.megabytes, "{:.1f}"),
        (f"CPU latency, {compare.LATENCY_TOKENS} tokens (ms)", a.milliseconds, b.milliseconds, "{:.1f}"),
    ):
        table.add_row(name, form.format(x), form.format(y), f"{x / y:.1f}×")
    console = Console()
    console.print(table)
    console.print(
        f"Over {found.sentences} held-out sentences: embedding geometry correlates {found.correlation:.3f} with the "
        f"teacher's; {found.neighbours:.0%} have the same nearest neighbour (chance: {found.chance_neighbours:.1%})."
    )
    return 0
