"""What the service's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import Server

from service.client import Client


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that is not started yet; the test starts it with its options."""
    made = Server(tmp_path)
    yield made
    made.client.close()
    if made.process is not None and made.process.poll() is None:
        for job in Client(made.url).list():
            if job["status"] not in ("succeeded", "failed", "cancelled"):
                Client(made.url).cancel(job["id"])
        made.end()
