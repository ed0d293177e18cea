"""What docs/operations.md says of backups: database first, folders after it, and all jobs go on from them."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from contextlib import ExitStack, closing, contextmanager

import postgres
import pytest
from server_process import Server, until

SMALL = {"layers": 3, "hidden": 192, "steps": 3}
DATABASES = [
    "sqlite",
    pytest.param("postgresql", marks=pytest.mark.skipif(postgres.missing(), reason="no PostgreSQL, or no psycopg")),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", DATABASES)
def test_jobs_go_on_from_a_backup(kind, tmp_path, request):
    urls = ["", ""]
    if kind == "postgresql":
        urls = [postgres.new(request.getfixturevalue("postgres_server")) for _ in range(2)]
    with ExitStack() as stack:
        first = stack.enter_context(served(tmp_path / "old", urls[0])).start()
        done = first.client.wait(first.client.create(SMALL)["id"])
        first.behave("trainer", "wait")
        going = first.client.create(SMALL)
        until(first, going, "checkpoint")
        save(kind, first, urls[0], tmp_path / "backup.db")
        late = first.client.create(SMALL)
        shutil.copytree(first.root / "data" / "jobs", tmp_path / "backup")

        second = stack.enter_context(served(tmp_path / "new", urls[1]))
        shutil.copytree(tmp_path / "backup", second.root / "data" / "jobs")
        bring_back(kind, second, urls[1], tmp_path / "backup.db")
        second.start()
        assert {job["id"] for job in second.client.list()} == {done["id"], going["id"]}
        assert not second.run(late["id"]).exists(), "it was made between the two halves of the backup"
        second.client.pull(done["id"], tmp_path / "student")
        again = second.client.wait(going["id"])
        assert (again["status"], again["attempt"]) == ("succeeded", 2)
        attempts = [event["step"] for event in second.client.events(going["id"]) if event["type"] == "attempt"]
        assert attempts == [0, 1], "it went on from the checkpoint that was in the backup"


@contextmanager
def served(root, url):
    root.mkdir()
    made = Server(root, ("--database", url, "--name", "local", "--slots", "4") if url else ("--slots", "4"))
    try:
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.behave("go", "")
            for job in made.client.list():
                made.client.wait(job["id"])
            made.end()
        made.client.close()


def save(kind, server, url, target):
    """The page's commands, while the server runs; what the `sqlite3` command does Python's module does too."""
    if kind == "sqlite":
        there = sqlite3.connect(server.root / "data" / "service.db")
        with closing(there) as source, closing(sqlite3.connect(target)) as copy:
            source.backup(copy)
    else:
        tool("pg_dump", "--format=custom", f"--file={target}", url)


def bring_back(kind, server, url, source):
    if kind == "sqlite":
        shutil.copy(source, server.root / "data" / "service.db")
    else:
        tool("pg_restore", f"--dbname={url}", str(source))


def tool(name, *arguments):
    plain = [one.replace("postgresql+psycopg", "postgresql") for one in arguments]
    done = subprocess.run([postgres.TOOLS / name, *plain], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
