"""What the commands of `asking` do."""

from __future__ import annotations

import argparse
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from etd_ds.contract import errors, flags, spec
from service.client import Client, answering
from service.settings import environment

_FIELDS = spec.JobSpec.model_fields


def run(args: argparse.Namespace) -> int:
    """The exit code of the command in `args`. Raises `EtdError` when it is refused or nobody answers."""
    with answering(args.url):
        return _VERBS.get(args.command, _ask)(args)


def _client(args: argparse.Namespace) -> Client:
    return Client(args.url, key=environment("KEY"))


def _submit(args: argparse.Namespace) -> int:
    request = _read(args.file) if args.file else {}
    beside = ("priority", "webhook", "webhook_events")
    request |= {name: getattr(args, name) for name in beside if getattr(args, name) is not None}
    labels = request.get("labels", {})
    if args.label and isinstance(labels, dict):
        request["labels"] = labels | dict(one.partition(":")[::2] for one in args.label)
    job = flags.parse({name: one for name, one in request.items() if name in _FIELDS} | flags.given(args))
    request |= job.model_dump(mode="json", exclude_unset=True)  # what is no field of a spec is for the service to judge
    with _client(args) as client:
        made = client.create(request, idempotency_key=secrets.token_hex(16), background=args.background)
        print(made["id"])
        if not args.quiet:
            _describe(Console(stderr=True), made)
        return _follow(client, made["id"], quiet=args.quiet) if args.watch else 0


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
        if isinstance(found, dict):
            return found
    except ValueError:
        pass
    raise errors.EtdError(f"--file: wanted a JSON object, got {file}", field="file", wanted="a JSON object")


def _plan(args: argparse.Namespace) -> int:
    job = flags.read(args)
    with _client(args) as client:
        print(json.dumps(client.plan(job.model_dump(mode="json", exclude_unset=True)), indent=2))
    return 0


def _list(args: argparse.Namespace) -> int:
    with _client(args) as client:
        jobs = client.list(status=args.status or [], label=args.label or [])
    if args.json:
        print(json.dumps(jobs, indent=2))
        return 0
    table = Table("job", "status", "student", "parameters", "step", "loss", "ETA", box=None)
    for job in jobs:
        student, progress = job["student"] or {}, job["progress"] or {}
        table.add_row(
            job["id"],
            job["status"],
            f"{student['layers']}L-{student['hidden']}" if student else "",
            f"{student['parameters'] / 1e6:.1f} M" if student else "",
            f"{progress['step']}/{progress['steps']}" if progress else "",
            f"{progress['loss']:.4g}" if "loss" in progress else "",
            f"{progress['eta_seconds']:.0f} s" if job["status"] == "running" and "eta_seconds" in progress else "",
        )
    Console().print(table)
    return 0


def _show(args: argparse.Namespace) -> int:
    with _client(args) as client:
        print(json.dumps(client.get(args.job), indent=2))
    return 0


def _watch(args: argparse.Namespace) -> int:
    with _client(args) as client:
        return _follow(client, args.job, quiet=args.quiet)


def _follow(client: Client, job_id: str, *, quiet: bool) -> int:
    """Show progress until the end; 0 if the job succeeded."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"),
               TextColumn("{task.fields[numbers]}"))  # fmt: skip
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        line: TaskID | None = None
        for event in client.events(job_id):
            if event["type"] == "progress":
                if line is None:
                    line = bar.add_task("", numbers="")
                bar.update(line, description=event["part"], completed=event["done"], total=event["total"])
            elif event["type"] in ("attempt", "step"):
                if line is None:
                    line = bar.add_task("", numbers="")
                bar.update(line, description="distils", total=event["steps"])
                numbers = ""
                if event["type"] == "step":
                    numbers = (
                        f"loss {event['loss']:.4g}  {event['tokens_per_second']:.0f} tokens/s  "
                        f"{event['eta_seconds']:.0f} s left"
                    )
                bar.update(line, completed=event["step"], numbers=numbers)
            elif event["type"] == "status" and not quiet:
                console.print(f"{job_id} is {event['status']}")
            elif event["type"] == "validation" and not quiet:
                console.print(f"held-out loss after {event['step']} steps: {event['loss']:.4g}")
    job = client.get(job_id)
    if job["status"] == "succeeded":
        return 0
    console.print(*job["log_tail"], sep="\n", markup=False, highlight=False)
    if job["error"]:
        console.print(f"{job['error']['code']}: {job['error']['message']}", markup=False)
    return 1


def _logs(args: argparse.Namespace) -> int:
    with _client(args) as client:
        if args.follow:
            for line in client.follow_log(args.job, args.lines):
                print(line, flush=True)
        else:
            print(client.log(args.job, args.lines), end="")
    return 0


def _checkpoints(args: argparse.Namespace) -> int:
    with _client(args) as client:
        print(json.dumps(client.checkpoints(args.job), indent=2))
    return 0


def _ask(args: argparse.Namespace) -> int:
    with _client(args) as client:
        job = getattr(client, args.command)(args.job)
    if job is None:
        print(f"{args.job} is deleted")
    else:
        print(f"{job['id']} is {job['status']}" + (f", asked to {job['asked']}" if job["asked"] else ""))
    return 0


def _pull(args: argparse.Namespace) -> int:
    folder = args.folder or Path(args.job)
    console = Console(stderr=True)
    with (
        _client(args) as client,
        Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), console=console,
                 disable=args.quiet or not console.is_terminal) as bar,
    ):  # fmt: skip
        line = bar.add_task("", total=None)
        client.pull(args.job, folder, connections=args.connections,
                    progress=lambda done, total: bar.update(line, completed=done, total=total))  # fmt: skip
    print(folder)
    return 0


def _secret(args: argparse.Namespace) -> int:
    with _client(args) as client:
        print(client.webhook_secret(new=args.new))
    return 0


def _describe(console: Console, job: dict[str, Any]) -> None:
    student = job["student"]
    if student is None:
        console.print(f"{job['status']}; `etd-jobs watch {job['id']}` follows it", markup=False, highlight=False)
        return
    console.print(
        f"student {student['layers']}L-{student['hidden']} ({student['heads']} heads, FFN {student['ffn']}): "
        f"{student['parameters'] / 1e6:.1f} M parameters, {student['compression']:.2f} times fewer than its teacher, "
        f"extracted in {student['extraction_seconds']:.1f} s; {job['status']}",
        highlight=False,
    )


_VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "submit": _submit,
    "plan": _plan,
    "list": _list,
    "show": _show,
    "watch": _watch,
    "logs": _logs,
    "checkpoints": _checkpoints,
    "pull": _pull,
    "webhook-secret": _secret,
}
"""The others only ask the service for something."""
