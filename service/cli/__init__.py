"""`etd-jobs`: run the job service, and talk to one."""

from __future__ import annotations

import argparse
import sys

from etd_ds import __version__
from etd_ds.contract import errors
from service.cli import asking, kubernetes, restoring, serving, working


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script. Exit code 1: the job failed; 2: bad input, or no answer."""
    parser = argparse.ArgumentParser(prog="etd-jobs", description=__doc__)
    parser.add_argument("--version", action="version", version=f"etd-jobs {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serving.configure(commands)
    working.configure(commands)
    asking.configure(commands)
    kubernetes.configure(commands)
    restoring.configure(commands)
    args = parser.parse_args(argv)
    try:
        code: int = args.run(args)
    except (errors.EtdError, OSError) as error:  # OSError: a file that cannot be read or written
        print(f"etd-jobs: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code
