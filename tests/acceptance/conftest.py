"""One data folder for the whole session, so that scores and corpus are computed once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from job_server import Server


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service") / "data"


@pytest.fixture
def server(data_dir: Path) -> Iterator[Server]:
    """The server on the session's one data folder: scores and corpus are computed once."""
    server = Server(data_dir)
    server.start()
    yield server
    server.kill()
    server.http.close()
