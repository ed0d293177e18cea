"""One data folder for the whole session, so that scores and corpus are computed once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from job_server import Server


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service") / "data"


@pytest.fixture(scope="session")
def one_server(data_dir: Path) -> Iterator[Server]:
    server = Server(data_dir)
    yield server
    server.kill()
    server.http.close()


@pytest.fixture
def server(one_server: Server) -> Server:
    """The session's one server, up: scores and corpus are computed once, and its extraction worker is started once."""
    if one_server.process is None or one_server.process.poll() is not None:
        one_server.start()
    return one_server
