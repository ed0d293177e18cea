"""The commands of whoever runs a server: serve, keys, demo."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from etd_ds.contract import errors
from service import audit
from service.cli import working
from service.database import Database
from service.executors import slurm_flags
from service.keys import SCOPES, TENANTS_SCOPES, Keys
from service.settings import Settings, environment


def configure(commands: Any) -> None:
    """Add the commands of this room."""
    for add in (_serve, _keys, _demo):
        add(commands)


def _serve(commands: Any) -> None:
    parser = commands.add_parser("serve", help="run the job service", description="Run the job service.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    working.add_flags(parser)
    parser.add_argument("--no-executor", action="store_true", help="run no jobs here: `etd-jobs worker` does elsewhere")
    parser.add_argument("--teacher", action="append", default=[], metavar="NAME=DIR",
                        help="let requests use a local teacher under this name; may be repeated")  # fmt: skip
    parser.add_argument("--corpus", action="append", default=[], metavar="NAME=PATH",
                        help="let requests use local text under this name; may be repeated")  # fmt: skip
    parser.add_argument("--artifacts", default=environment("ARTIFACTS"), metavar="s3://BUCKET/PREFIX",
                        help="publish students and checkpoints there (default: $ETD_JOBS_ARTIFACTS, or nowhere); "
                             "AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, … say where and who as for any client")  # fmt: skip
    parser.add_argument("--redirect", type=working.number(int), default=0, metavar="SECONDS",
                        help="send clients that fetch one file to the bucket, by an address that is valid so long "
                             "(default: 0, files are sent from here)")  # fmt: skip
    parser.add_argument("--webhook-host", action="append", default=[], metavar="HOST",
                        help="let webhooks call this private host, and over http; may be repeated")  # fmt: skip
    parser.add_argument("--no-hub", action="store_true", help="refuse teachers and corpora of a model hub")
    working.add_settings(
        parser,
        ("quota", int, "jobs that a tenant may have queued, running or paused; 0: no limit"),
        ("streams", int, "event streams and followed logs that a tenant may have open; 0: no limit"),
        ("rate", int, "changes that a caller may ask for in a minute; 0: no limit"),
        ("respond-within", float, "seconds that a request waits for its extraction before it is answered 202"),
        ("keep-days", float, "days after which a job that has ended is removed, as DELETE does it; 0: never"),
        ("webhook-backoff", float, "seconds before a webhook is tried again; each further wait is 4 times as long"),
        ("extraction-timeout", float, "seconds that an extraction may take"),
        ("extraction-memory", int, "bytes of memory that the extraction may take; 0: no limit"),
    )
    slurm_flags.add(parser)
    parser.add_argument("--worker-command", type=shlex.split, default=[], help=argparse.SUPPRESS)
    parser.set_defaults(run=_run_server)


def _run_server(args: argparse.Namespace) -> int:
    from service import app  # the client's commands need no web framework

    working.set_up_log(args)
    if not 0 <= args.port <= 65535:
        raise errors.EtdError(f"--port: wanted 0 to 65535, got {args.port}", field="port", got=args.port)
    if args.redirect and not args.artifacts:
        raise errors.EtdError("--redirect: wanted only together with --artifacts", field="redirect")
    slurm = slurm_flags.read(args)
    if slurm and (missing := [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]):
        raise errors.EtdError(f"--slurm: wanted a machine with Slurm's commands, got one without {', '.join(missing)}")
    mine = working.read_flags(args, slurm=slurm)
    if args.no_executor:
        if slurm or not args.database.startswith("postgresql"):
            wanted = "--database postgresql+psycopg://… that workers elsewhere share, and no --slurm"
            raise errors.EtdError(f"--no-executor: wanted {wanted}", wanted=wanted)
        mine |= {"worker": "", "slots": 0, "gpus": 0}
    settings = Settings(
        **mine,
        host=args.host,
        port=args.port,
        teachers={name: Path(path) for name, path in _aliases("--teacher", args.teacher, folder=True)},
        corpora=dict(_aliases("--corpus", args.corpus, folder=False)),
        hub=not args.no_hub,
        artifacts=args.artifacts,
        redirect=args.redirect,
        quota=args.quota,
        streams=args.streams,
        rate=args.rate,
        keep_days=args.keep_days,
        respond_within=args.respond_within,
        webhook_hosts=frozenset(args.webhook_host),
        webhook_backoff=args.webhook_backoff,
        extraction_timeout=args.extraction_timeout,
        extraction_memory=args.extraction_memory,
        worker_command=tuple(args.worker_command),
    )
    app.serve(settings)
    return 0


def _aliases(flag: str, given: list[str], *, folder: bool) -> list[tuple[str, str]]:
    found = []
    for text in given:
        name, _, path = text.partition("=")
        there = Path(path).expanduser().resolve()
        if not name or not path or not (there.is_dir() if folder else there.exists()):
            kind = "an existing folder" if folder else "an existing file or folder"
            raise errors.EtdError(f"{flag}: wanted NAME=PATH with {kind}, got {text!r}", wanted="NAME=PATH", got=text)
        found.append((name, str(there)))
    return found


def _demo(commands: Any) -> None:
    text = "run the main job on this machine, from nothing: serve, post, watch, download, load, compare"
    parser = commands.add_parser("demo", help=text, description=text)
    parser.add_argument("--folder", type=Path, help="where data and student go (default: a new temporary folder)")
    parser.set_defaults(run=_run_demo)


def _run_demo(args: argparse.Namespace) -> int:
    from service import demo

    return demo.run((args.folder or Path(tempfile.mkdtemp(prefix="etd-demo-"))).resolve())


# ---- keys


def _keys(commands: Any) -> None:
    text = "make, list and revoke API keys; once there is one, every request needs one"
    parser = commands.add_parser("keys", help=text, description=text)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    create = verbs.add_parser("create", help="make a key and print it: it is never shown again")
    create.add_argument("name", help="whose key it is, for the list")
    create.add_argument("--tenant", default="default", help="whose jobs it sees (default: %(default)s)")
    create.add_argument("--scopes", nargs="+", choices=list(SCOPES), default=list(TENANTS_SCOPES), metavar="SCOPE",
                        help=f"what it may do, of {', '.join(SCOPES)} (default: all but metrics:read, which is about "
                             "all tenants)")  # fmt: skip
    create.add_argument("--days", type=float, help="days until it expires (default: never)")
    create.set_defaults(run=_run_create_key)
    listing = verbs.add_parser("list", help="list all keys, without their secrets")
    listing.set_defaults(run=_run_list_keys)
    revoke = verbs.add_parser("revoke", help="end a key at once")
    revoke.add_argument("key", help="its id, from the list")
    revoke.set_defaults(run=_run_revoke_key)
    for verb in (create, listing, revoke):
        verb.add_argument("--data-dir", type=Path, metavar="DIR", help="the server's data folder")
        verb.add_argument("--database", default=environment("DATABASE"), metavar="URL",
                          help="or its database (default: $ETD_JOBS_DATABASE)")  # fmt: skip
        verb.add_argument("--log-json", action="store_true", help="log one JSON object a line")


def _open_keys(args: argparse.Namespace) -> Keys:
    if args.data_dir is None and not args.database:
        wanted = "--data-dir or --database, of the server whose keys they are"
        raise errors.EtdError(f"keys: wanted {wanted}, got neither", wanted=wanted)
    folder = (args.data_dir or Path()).resolve()
    if not args.database and args.verb != "create" and not folder.is_dir():
        raise errors.EtdError(f"--data-dir: wanted a server's data folder, got {folder}, which is not there")
    database = Database(Settings(data_dir=folder, database=args.database).database_url)
    working.set_up_log(args)
    database.create()
    return Keys(database)


def _run_create_key(args: argparse.Namespace) -> int:
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", args.tenant) is None:
        wanted = "lower-case letters, digits, - and _, at most 63"
        raise errors.EtdError(f"--tenant: wanted {wanted}, got {args.tenant!r}", wanted=wanted, got=args.tenant)
    if args.days is not None and not args.days > 0:
        raise errors.EtdError(f"--days: wanted more than 0, got {args.days:g}", wanted="more than 0", got=args.days)
    secret, key = _open_keys(args).create(args.name[:100], args.tenant, args.scopes, days=args.days)
    print(secret)
    print(f"key {key.id} of tenant {key.tenant}; keep it: it is not shown again", file=sys.stderr)
    audit.note("key_create", 201, tenant=key.tenant, key=key.id, name=key.name)
    return 0


def _run_list_keys(args: argparse.Namespace) -> int:
    from rich.console import Console  # a server does without
    from rich.table import Table

    table = Table("id", "name", "tenant", "scopes", "state", box=None)
    for key in _open_keys(args).all():
        state = "valid" if key.valid else "revoked" if key.revoked else "expired"
        table.add_row(key.id, key.name, key.tenant, " ".join(sorted(key.scopes)), state)
    Console().print(table)
    return 0


def _run_revoke_key(args: argparse.Namespace) -> int:
    key = _open_keys(args).revoke(args.key)
    if key is None:
        audit.note("key_revoke", 404, tenant=None, key=args.key, name=None)
        raise errors.EtdError(f"there is no key {args.key!r}", got=args.key)
    audit.note("key_revoke", 200, tenant=key.tenant, key=key.id, name=key.name)
    print(f"{args.key} is revoked")
    return 0
