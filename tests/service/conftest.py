"""What the service's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest
from object_store import ObjectStore
from server_process import Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that is not started yet; the test starts it with its options."""
    made = Server(tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        for job in made.client.list(status=["extracting", "queued", "running", "paused"]):
            made.client.cancel(job["id"])
        made.end()
    made.client.close()


@pytest.fixture(scope="session")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A real S3 server with an empty bucket."""
    made = ObjectStore(tmp_path_factory.mktemp("s3") / "data").start()
    yield made
    made.end()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    with postgres.running() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """An empty PostgreSQL database."""
    return postgres.new(postgres_server)
