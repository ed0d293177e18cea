"""The commands of whoever uses a server."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from etd_ds.contract import flags
from service.settings import environment
from service.status import STATUSES


def configure(commands: Any) -> None:
    """Add the commands of this room."""
    for add in (_submit, _plan, _list, _show, _watch, _logs, _checkpoints, _asks, _pull, _secret):
        add(commands)


def _client_parser(commands: Any, name: str, text: str, *, job: bool = True) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    if job:
        parser.add_argument("job", help="the job's id")
    parser.add_argument("--url", default=environment("URL", "http://127.0.0.1:8000"),
                        help="the service (default: $ETD_JOBS_URL or %(default)s; key: $ETD_JOBS_KEY)")  # fmt: skip
    parser.set_defaults(run=_run)
    return parser


def _run(args: argparse.Namespace) -> int:
    from service.cli import verbs  # a server does without HTTP client and progress bars

    return verbs.run(args)


def _label(text: str) -> str:
    name, colon, _ = text.partition(":")
    if not (name and colon):
        raise argparse.ArgumentTypeError(f"wanted NAME:VALUE, got {text!r}")
    return text


def _submit(commands: Any) -> None:
    parser = _client_parser(commands, "submit", "make a job of a spec, given as flags or as a JSON file", job=False)
    parser.add_argument("--file", type=Path, help="a JSON file with the spec; flags win over it")
    parser.add_argument("--label", nargs="*", type=_label, default=[], metavar="NAME:VALUE",
                        help="labels to find the job by")  # fmt: skip
    parser.add_argument("--priority", type=int, help="higher ones start first, from -100 to 100")
    parser.add_argument("--webhook", metavar="URL", help="an https address that is told how the job ends")
    parser.add_argument("--webhook-events", nargs="+", metavar="EVENT",
                        help="what it is told of: running, paused, checkpoint, succeeded, failed, cancelled (default: "
                             "the last three)")  # fmt: skip
    parser.add_argument("--async", action="store_true", dest="background",
                        help="do not wait for the extraction, which takes long with a new teacher or text")  # fmt: skip
    parser.add_argument("--watch", action="store_true", help="follow the job until it has ended")
    parser.add_argument("--quiet", action="store_true", help="print the job's id only")
    flags.add(parser)


def _plan(commands: Any) -> None:
    parser = _client_parser(commands, "plan", "what a job would make and cost, without making anything", job=False)
    flags.add(parser)


def _list(commands: Any) -> None:
    parser = _client_parser(commands, "list", "list jobs, the newest first", job=False)
    parser.add_argument("--status", nargs="*", choices=STATUSES, metavar="STATUS",
                        help=f"only jobs with one of these, of {', '.join(STATUSES)}")  # fmt: skip
    parser.add_argument("--label", nargs="*", type=_label, metavar="NAME:VALUE", help="only jobs with these labels")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _show(commands: Any) -> None:
    _client_parser(commands, "show", "print a job as JSON")


def _watch(commands: Any) -> None:
    parser = _client_parser(commands, "watch", "follow a job until it has ended")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _logs(commands: Any) -> None:
    parser = _client_parser(commands, "logs", "print what a job's trainer printed")
    parser.add_argument("--lines", type=int, default=100, help="how many of the last lines (default: %(default)s)")
    parser.add_argument("--follow", action="store_true", help="go on until the job has ended")


def _checkpoints(commands: Any) -> None:
    _client_parser(commands, "checkpoints", "list a job's checkpoints")


_ASKS = {
    "cancel": "end a job",
    "pause": "have a job write a checkpoint and leave its slots to others",
    "resume": "queue a paused job again",
    "retry": "queue a failed or cancelled job again",
    "delete": "forget a job that has ended or is paused, and its files",
}


def _asks(commands: Any) -> None:
    for name, text in _ASKS.items():
        _client_parser(commands, name, text)


def _pull(commands: Any) -> None:
    parser = _client_parser(commands, "pull", "download a student, checked against its sha256; continues when cut off")
    parser.add_argument("folder", type=Path, nargs="?", help="where to (default: a folder named like the job)")
    parser.add_argument("--connections", type=int, default=4, help="how many at once (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _secret(commands: Any) -> None:
    text = "print the secret with which webhooks are signed"
    parser = _client_parser(commands, "webhook-secret", text, job=False)
    parser.add_argument("--new", action="store_true", help="make a new one, which signs from now on")
