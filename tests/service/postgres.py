"""A PostgreSQL of our own on loopback, from the Debian package."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from etd_ds.contract import launch

_TOOL = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))), None)
TOOLS = _TOOL.parent if _TOOL else Path()


def missing() -> bool:
    """Whether there can be none here: no server or no driver."""
    return _TOOL is None or importlib.util.find_spec("psycopg") is None


@contextmanager
def running() -> Iterator[str]:
    """The URL of an empty database of a new server, which never waits for the disk: no test cuts the power."""
    assert _TOOL is not None
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres")
    port = launch.free_port()
    subprocess.run([*user, TOOLS / "initdb", "-D", folder / "db", "-A", "trust", "-U", "etd", "--no-sync"], check=True,
                   capture_output=True)  # fmt: skip
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c max_connections=200"
    control = [*user, _TOOL, "-D", folder / "db", "-w"]
    start = [*control, "-l", folder / "log", "-o", f"{options} -c fsync=off", "start"]
    subprocess.run(start, check=True, stdout=subprocess.DEVNULL)
    try:
        yield f"postgresql+psycopg://etd@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(folder, ignore_errors=True)


def new(url: str) -> str:
    """The URL of a further, empty database of that server."""
    name = f"db{uuid.uuid4().hex}"
    at = url.replace("postgresql+psycopg", "postgresql")
    subprocess.run([TOOLS / "createdb", f"--maintenance-db={at}", name], check=True, timeout=60)
    return f"{url.rpartition('/')[0]}/{name}"
