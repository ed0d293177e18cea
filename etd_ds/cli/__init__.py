"""`etd-ds`: extraction, distillation and measurements from the shell. Each subcommand is a module of this room."""

from __future__ import annotations

import argparse
import importlib
import sys

from etd_ds import __version__
from etd_ds.contract import errors

# name -> what it does. The module of that name has `configure(parser)` and `run(args) -> exit code`,
# and is imported only when its command is used, so that `etd-ds --help` does not wait for torch.
COMMANDS: dict[str, str] = {
    "plan": "show what a student would look like and cost",
    "extract": "cut a student from a teacher into a Hugging Face folder",
    "scores": "compute and keep a teacher's importance scores ahead of time",
    "data": "prepare a corpus of any size, or look into a prepared one",
    "compare": "show a student beside its teacher: size, speed, likeness of embeddings",
    "evaluate": "fine-tune a student or teacher on GLUE, SQuAD or offline tasks, and score it",
    "reproduce": "run a paper's rows at a scale that fits the machine",
    "report": "write what a reproduction found, beside the paper's numbers",
}


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script.

    Bad input ends in one line on stderr and exit code 2; what the system refuses (a full disk, a folder that may not
    be read or written) in one line and 1.
    """
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="etd-ds",
        description="Extract students from BERT teachers, and measure them. `etd-ds COMMAND --help` says more.",
        epilog="They are distilled by `deepspeed etd_ds/train.py`; docs/training.md has the whole way.",
    )
    parser.add_argument("--version", action="version", version=f"etd-ds {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary)
        if arguments[:1] == [name]:
            module = importlib.import_module(f"etd_ds.cli.{name}")
            module.configure(sub)
            sub.set_defaults(run=module.run)
    args = parser.parse_args(arguments)
    try:
        code: int = args.run(args)
    except errors.EtdError as error:
        print(f"etd-ds: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"etd-ds: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("etd-ds: interrupted", file=sys.stderr)
        return 130
    return code
