"""A PostgreSQL of our own on loopback, from the Debian package."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
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
    """The URL of a new, empty database."""
    assert _TOOL is not None
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres")
    port = launch.free_port()
    subprocess.run([*user, _TOOL.parent / "initdb", "-D", folder / "db", "-A", "trust", "-U", "etd"], check=True,
                   capture_output=True)  # fmt: skip
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c max_connections=200"
    control = [*user, _TOOL, "-D", folder / "db", "-w"]
    subprocess.run([*control, "-l", folder / "log", "-o", options, "start"], check=True, stdout=subprocess.DEVNULL)
    try:
        yield f"postgresql+psycopg://etd@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(folder, ignore_errors=True)
