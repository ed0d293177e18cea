"""The command that brings lost run folders back from the bucket."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from etd_ds.contract import errors
from service.database import Database
from service.settings import Settings, environment
from service.storage import Away, Bucket
from service.store import Store


def configure(commands: Any) -> None:
    """Add the command of this room."""
    text = "bring back the run folders that the database knows and the data folder lacks, before a server starts"
    parser = commands.add_parser("restore", help=text, description=text)
    parser.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="the server's data folder")
    parser.add_argument("--database", default=environment("DATABASE"), metavar="URL",
                        help="the server's database (default: $ETD_JOBS_DATABASE, or the folder's SQLite)")  # fmt: skip
    parser.add_argument("--artifacts", default=environment("ARTIFACTS"), metavar="s3://BUCKET/PREFIX",
                        help="where the server published them (default: $ETD_JOBS_ARTIFACTS)")  # fmt: skip
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    bucket = Bucket(args.artifacts)
    settings = Settings(data_dir=args.data_dir.resolve(), database=args.database)
    if not args.database and not (settings.data_dir / "service.db").is_file():
        wanted = "the server's database in it, brought back before"
        raise errors.EtdError(
            f"--data-dir: wanted {wanted}, got {settings.data_dir} without a service.db", wanted=wanted
        )
    database = Database(settings.database_url)
    settings.prepare()
    database.create()
    back, never, damaged = 0, 0, 0
    for job_id in sorted(Store(database).ids()):
        if (settings.runs / job_id).exists():
            continue
        try:
            found = bucket.restore(job_id, settings.runs, settings.incoming / f"back-{job_id}")
        except Away as away:
            raise errors.EtdError(f"{job_id}: the bucket cannot be reached ({away}); start this again") from None
        except (FileNotFoundError, ValueError) as damage:  # the others are not to wait
            print(f"{job_id} is damaged in the bucket: {damage}")
            damaged += 1
        else:
            back += found
            if not found:
                print(f"{job_id} was never published")
                never += 1
    print(f"{back} brought back, {never} not there, {damaged} damaged")
    return 1 if damaged else 0
