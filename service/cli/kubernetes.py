"""The command that prints a run as a Kubernetes Job."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from etd_ds.contract import errors, rundir
from service.cli.working import number
from service.executors.kubernetes_manifest import KubernetesOptions, render

# (field of KubernetesOptions, type, placeholder, help)
_FLAGS: tuple[tuple[str, Callable[[str], Any], str, str], ...] = (
    ("mount", Path, "DIR", "where the pods see the claim"),
    ("cache", Path, "DIR", "teachers and tokenized corpora, below --mount"),
    ("python", str, "PATH", "Python interpreter in the image"),
    ("repository", Path, "DIR", "etd-ds in the image"),
    ("gpu_resource", str, "NAME", "what the cluster calls a GPU"),
    ("cpus", str, "N", "CPU cores of a pod"),
    ("memory", str, "SIZE", "memory of a pod, such as 64Gi"),
    ("grace", number(int), "SECONDS", "how long an evicted pod may take to write its checkpoint"),
    ("retries", number(int), "N", "how many failed pods of each node are replaced"),
)


def configure(commands: Any) -> None:
    """Add the command of this room."""
    text = "print a run folder as a Kubernetes Job, for `kubectl apply -f -`"
    parser = commands.add_parser("manifest", help=text, description=text)
    parser.add_argument("folder", type=Path, help="run folder, under the path that the pods see it by")
    parser.add_argument("--image", required=True, help="image of docker/trainer.Dockerfile")
    parser.add_argument("--claim", required=True, metavar="NAME", help="PersistentVolumeClaim with the data folder")
    parser.add_argument("--cpu", action="store_true", help="train on CPUs")
    defaults = {field.name: field.default for field in dataclasses.fields(KubernetesOptions)}
    for name, kind, placeholder, help_text in _FLAGS:
        shown = f" (default: {defaults[name]})" if defaults[name] != "" else ""
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=kind, default=defaults[name], metavar=placeholder, help=help_text + shown)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    run = rundir.RunDir(args.folder)
    for flag, path in (("folder", args.folder), ("--cache", args.cache)):
        if not path.is_absolute() or not path.is_relative_to(args.mount):
            wanted = f"an absolute path below --mount {args.mount}"
            raise errors.EtdError(f"{flag}: wanted {wanted}, got {path}", wanted=wanted, got=str(path))
    if re.fullmatch(r"[a-z]([a-z0-9-]{0,54}[a-z0-9])?", run.root.name) is None:
        wanted = "lower-case letters, digits and -, a letter first, at most 56"
        raise errors.EtdError(f"folder: Kubernetes wants a name of {wanted}, got {run.root.name!r}", wanted=wanted)
    options = KubernetesOptions(image=args.image, claim=args.claim, cpu=args.cpu,
                                **{name: getattr(args, name) for name, *_ in _FLAGS})  # fmt: skip
    # through JSON, or what stands twice would become an anchor and aliases
    made = json.loads(json.dumps(render(options, run=run, job=run.read_job())))
    print(yaml.safe_dump_all(made, sort_keys=False), end="")
    return 0
