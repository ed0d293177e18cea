"""`etd-ds evaluate`: fine-tune a student or teacher on downstream tasks and score it, by the paper's protocol."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console
from rich.table import Table

from etd_ds.contract import errors, launch, spec, teachers

if TYPE_CHECKING:
    from etd_ds.evaluate.summaries import Summary
    from etd_ds.evaluate.tasks import Task


def configure(parser: argparse.ArgumentParser) -> None:
    from etd_ds.evaluate import tasks

    names = ", ".join([*tasks.TASKS, *tasks.GROUPS])
    parser.add_argument("--model", default=teachers.EMBEDDED, help="a hub id or a folder (default: %(default)s)")
    parser.add_argument(
        "--task", required=True, nargs="+", metavar="NAME", help=f"one or more of {names}; the last three are groups"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder of GLUE's TSV folders, SQuAD's JSON files or an offline task's archive; without it the hub is "
        "asked, and offline tasks come from installed packages",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="of results; started again, continues")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="default: 0")
    parser.add_argument("--learning-rates", type=float, nargs="+", metavar="X", help="default: the paper's grid")
    parser.add_argument("--epochs", type=int, nargs="+", metavar="N", help="default: the paper's grid")
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: the paper's, 32 (squad 16)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="default: 128 (squad 384)")
    parser.add_argument("--train-limit", type=int, metavar="N", help="use N training examples only")
    parser.add_argument("--eval-limit", type=int, metavar="N", help="use N examples of each evaluation only")
    parser.add_argument("--precision", choices=get_args(spec.Precision), default="auto", help="default: auto")
    parser.add_argument(
        "--cache",
        type=Path,
        default=launch.default_cache(),
        metavar="DIR",
        help="of teachers, text and scores (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the summaries as JSON lines")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    from etd_ds.evaluate import tasks

    if min(args.seeds) < 0:
        raise errors.EtdError(f"seeds: wanted 0 or more, got {min(args.seeds)}", field="seeds", got=min(args.seeds))
    for name in ("train_limit", "eval_limit"):
        if (limit := getattr(args, name)) is not None and limit < 1:
            raise errors.EtdError(f"{name}: wanted 1 or more, got {limit}", field=name, got=limit)
    chosen = [(paper, _asked(paper, args)) for paper in tasks.named(args.task)]
    _alone()
    from etd_ds.bert import checkpoint
    from etd_ds.engine import ranks
    from etd_ds.evaluate import door, protocol
    from etd_ds.stages import progress

    model = checkpoint.resolve(args.model, args.cache)
    for paper, task in chosen:
        tasks.check(task, model.shape.positions)
        if len(chosen) > 1:
            door.open_task(paper, args.data)  # files that are missing are missed now, not after hours
    joined = ranks.join()
    limited = args.train_limit is not None or args.eval_limit is not None
    found = []
    for paper, task in chosen:
        material = door.open_task(task, args.data).limited(args.train_limit, args.eval_limit)
        summary = protocol.evaluate(
            model,
            task,
            material,
            args.out,
            cache=args.cache,
            paper=paper,
            seeds=list(dict.fromkeys(args.seeds)),
            limited=limited,
            joined=joined,
            precision=args.precision,
            report=progress.bar(quiet=args.quiet),
        )
        found.append(summary)
        if args.json:
            print(summary.model_dump_json(exclude={"trials"}), flush=True)
    ranks.leave(joined)
    if not args.json:
        _show(found)
    return 0


def _alone() -> None:
    """One rank without a launcher. Read when torch.distributed and DeepSpeed start, so set before they are imported."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(launch.free_port())
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    import torch

    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"


def _asked(task: Task, args: argparse.Namespace) -> Task:
    """The table's row with what the command line changes."""
    changes = {
        "learning_rates": tuple(args.learning_rates or ()),
        "epochs": tuple(args.epochs or ()),
        "batch_size": args.batch_size,
        "max_tokens": args.max_tokens,
    }
    given: Any = {name: value for name, value in changes.items() if value not in (None, ())}
    return replace(task, protocol=replace(task.protocol, **given))


def _show(summaries: list[Summary]) -> None:
    table = Table(title=f"{summaries[0].model}, fine-tuned")
    for heading in ("task", "on", "metric", "score", "majority", "words", "lr × epochs"):
        table.add_column(heading, justify="left" if heading in ("task", "on", "metric") else "right", no_wrap=True)
    for one in summaries:
        for name, metrics in one.scores.items():
            for metric, spread in metrics.items():
                floor = [f"{one.floors[kind][name][metric]:.1f}" for kind in one.floors] if one.floors else ["", ""]
                deviation = f" ± {spread.deviation:.1f}" if len(one.seeds) > 1 else ""
                row = [one.task, name, metric, f"{spread.mean:.1f}{deviation}", *floor]
                table.add_row(*row, f"{one.learning_rate:g} × {one.epochs}")
    console = Console()
    console.print(table)
    if any(one.floors for one in summaries):
        console.print("majority, words: what the commonest answer and a bag of words yield.")
    for one in summaries:
        decided = f"{one.task}: learning rate and epochs chosen on '{one.decided_on}', headline on '{one.reported}'"
        console.print(decided + (f"; scaled down: {', '.join(one.scaled_down)}" if one.scaled_down else ""))
