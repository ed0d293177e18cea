"""What goes wrong inside, told to the log."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service import problems


def test_no_request_writes_lines_of_its_own_into_the_log(caplog: pytest.LogCaptureFixture):
    app = FastAPI()
    problems.install(app)

    @app.get("/{name}")
    def fail(name: str) -> None:
        raise RuntimeError("a bug")

    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.get("/a%0AINFO all is well")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "a bug" not in answer.text
    assert "\n" not in caplog.records[-1].getMessage()
