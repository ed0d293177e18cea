"""Who may do what: keys, tenants, scopes, and open servers on loopback."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
import time

import httpx
import pytest
import sqlalchemy as sa
from fastapi import Request
from server_process import Server

from etd_ds.contract import spec
from service.app import create_app
from service.cli import main
from service.client import Client, ServiceError
from service.database import Database, webhook_secrets
from service.keys import SCOPES, Keys
from service.routes import watch
from service.settings import Settings, inherited
from service.store import Job

SMALL = {"layers": 3, "hidden": 192, "steps": 3}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server with keys: (server, secrets by name); tenant a has a finished job."""
    root = tmp_path_factory.mktemp("guarded")
    (root / "data").mkdir()
    database = Database(f"sqlite:///{root / 'data' / 'service.db'}")
    database.create()
    keys = Keys(database)
    secrets = {
        "a": keys.create("a", "a", SCOPES)[0],
        "b": keys.create("b", "b", SCOPES)[0],
        "reads": keys.create("reads", "a", ["jobs:read"])[0],
        "old": keys.create("old", "a", SCOPES, days=-1)[0],
    }
    secret, key = keys.create("gone", "a", SCOPES)
    keys.revoke(key.id)
    secrets["gone"] = secret
    database.close()
    server = Server(root, ("--log-json",), key=secrets["a"]).start()
    job = server.client.wait(server.client.create(SMALL, idempotency_key="k")["id"])
    yield server, secrets, job
    server.client.close()
    server.end()


def status(call):
    with pytest.raises(ServiceError) as refused:
        call()
    return refused.value.status


@pytest.mark.parametrize("name", ["old", "gone", "nobody", ""])
def test_only_valid_keys_open_the_door(guarded, name):
    server, secrets, job = guarded
    with Client(server.url, key=secrets.get(name, name)) as client:
        assert status(client.list) == 401
        assert status(lambda: client.get(job["id"])) == 401
        assert status(lambda: client.create(SMALL)) == 401


def test_another_tenants_job_does_not_exist(guarded):
    server, secrets, job = guarded
    with Client(server.url, key=secrets["b"]) as client:
        assert client.list() == []
        absent = []
        for job_id in (job["id"], "job-00000000000000000000"):
            answers = [client._http.get(f"/jobs/{job_id}{rest}") for rest in
                       ("", "/events", "/log", "/student", "/student/config.json", "/checkpoints")]  # fmt: skip
            answers += [client._http.post(f"/jobs/{job_id}/{ask}") for ask in ("cancel", "pause", "resume", "retry")]
            answers.append(client._http.delete(f"/jobs/{job_id}"))
            absent.append([(answer.status_code, answer.text) for answer in answers])
        assert absent[0] == absent[1], "nobody can tell another's job from none"
        assert {code for code, _ in absent[0]} == {404}
        assert status(lambda: client.page(after=job["id"])) == 404
        assert client.create(SMALL, idempotency_key="k")["id"] != job["id"]


def test_scopes(guarded, tmp_path):
    server, secrets, job = guarded
    with Client(server.url, key=secrets["reads"]) as client:
        assert client.get(job["id"])["status"] == "succeeded"
        assert status(lambda: client.create(SMALL)) == 403
        assert status(lambda: client.cancel(job["id"])) == 403
        assert status(lambda: client.pull(job["id"], tmp_path)) == 403


def test_secrets_are_nowhere(guarded):
    server, secrets, _ = guarded
    for path in (server.root / "data").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret.encode() in content for secret in secrets.values()), path
    databases = list((server.root / "data").glob("service.db*"))
    assert {path.stat().st_mode & 0o777 for path in databases} == {0o600}, "it holds what webhooks are signed with"


def test_an_error_of_the_database_shows_no_values(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'service.db'}")
    with pytest.raises(sa.exc.OperationalError, match="no such table") as failed, database.write() as connection:
        connection.execute(webhook_secrets.insert().values(tenant="t", secret="whsec_x"))
    assert "whsec_x" not in str(failed.value)
    database.close()


def test_children_do_not_get_what_only_the_server_needs(monkeypatch):
    secret = {"ETD_JOBS_DATABASE", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "OTEL_EXPORTER_OTLP_HEADERS"}
    for name in (*secret, "NCCL_DEBUG"):
        monkeypatch.setenv(name, "x")
    assert "NCCL_DEBUG" in inherited()
    assert not inherited().keys() & secret


def test_a_stream_ends_with_its_key(tmp_path, monkeypatch):
    app = create_app(Settings(data_dir=tmp_path, cache=tmp_path / "cache"))
    here = app.state.context
    secret, key = here.keys.create("a", "a", SCOPES)
    job = here.store.add(Job(id="job-1", spec=spec.JobSpec(**SMALL), ranks=1, tenant="a", created=time.time()))
    headers = [(b"authorization", f"Bearer {secret}".encode())]
    request = Request({"type": "http", "headers": headers})
    monkeypatch.setattr(watch, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watch, "_KEY_SECONDS", 0.0)

    async def looks() -> int:
        seen = 0
        async for _ in watch._looks(request, here, job.id):
            seen += 1
            if seen == 3:
                here.keys.revoke(key.id)
        return seen

    assert asyncio.run(asyncio.wait_for(looks(), 30)) == 3


def test_the_audit_log_has_every_change_that_is_asked_for(guarded):
    server, secrets, job = guarded
    a, nobody = server.client, Client(server.url, key="etd_nobodys")
    with Client(server.url, key=secrets["b"]) as b, Client(server.url, key=secrets["reads"]) as reads:
        a.list(), a.plan(SMALL), reads.get(job["id"])
        made = a.create(SMALL)["id"]
        a.wait(made)
        assert status(lambda: a.create({})) == 422
        asked = (nobody.cancel, reads.pause, b.resume)
        assert [status(lambda ask=ask: ask(made)) for ask in asked] == [401, 403, 404]
        assert (a.cancel(made)["status"], status(lambda: a.retry(made))) == ("succeeded", 409)
        a._http.post("/v1/jobs/x%0a%1b/cancel")
        a.delete(made)
        a.webhook_secret(new=True)
    nobody.close()
    database = Database(f"sqlite:///{server.root / 'data' / 'service.db'}")
    ids = {key.name: key.id for key in Keys(database).all()}
    database.close()
    of_a, wanted = ("a", ids["a"], "a"), []
    wanted += [("create", 201, *of_a, made), ("create", 422, *of_a, None), ("cancel", 401, None, None, None, made)]
    wanted += [("pause", 403, "a", ids["reads"], "reads", made), ("resume", 404, "b", ids["b"], "b", made)]
    wanted += [("cancel", 200, *of_a, made), ("retry", 409, *of_a, made), ("cancel", 404, *of_a, "x\n\x1b")]
    wanted += [("delete", 204, *of_a, made), ("new_webhook_secret", 200, *of_a, None)]
    found, names = [], ("verb", "status", "tenant", "key", "key_name", "job")
    for line in server.says():
        entry = json.loads(line)
        if entry["logger"] == "etd_jobs.audit":
            found.append(tuple(entry[name] for name in names))
            assert entry["message"].isprintable()
            assert not any(secret in line for secret in secrets.values())
            if found[-1] == wanted[-1]:
                break
    assert found[-len(wanted) :] == wanted


def test_whatever_there_is_to_say_is_a_json_line(guarded):
    server = guarded[0]
    with socket.create_connection((httpx.URL(server.url).host, httpx.URL(server.url).port)) as connection:
        connection.sendall(b"\0\r\n\r\n")
        connection.recv(1)
    server.client.plan(SMALL)
    wanted = {"Invalid HTTP request received.", "the extraction worker says: 99 %"}
    for line in server.says():
        wanted.discard(json.loads(line)["message"])
        if not wanted:
            break
    assert not wanted


def test_what_fails_inside_is_in_the_audit_log_and_the_metrics_too(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    app = create_app(Settings(data_dir=tmp_path, cache=tmp_path / "cache"))
    monkeypatch.delattr(app.state.context, "store")

    async def ask() -> int:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return (await http.post("/jobs/job-1/cancel")).status_code

    assert asyncio.run(ask()) == 500
    (entry,) = [record.audit for record in caplog.records if hasattr(record, "audit")]
    assert entry == {"verb": "cancel", "status": 500, "tenant": "default", "key": None, "key_name": None}
    assert any('status="500"' in line for line in app.state.context.latencies.lines())


def test_health_needs_no_key(guarded):
    server, _, _ = guarded
    assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_an_open_server_answers_only_to_this_machines_names(server):
    server.start()
    with httpx.Client(base_url=server.url) as http:
        assert http.get("/jobs").status_code == 200
        assert http.get("/jobs", headers={"Authorization": "Bearer hf_somebodys"}).status_code == 200
        assert http.get("/jobs", headers={"Host": "evil.example"}).json()["code"] == "foreign_origin"
        assert http.post("/jobs", json=SMALL, headers={"Origin": "http://evil.example"}).status_code == 403


def test_keys_are_made_listed_and_revoked_while_a_server_runs(server, capsys, caplog):
    caplog.set_level(logging.INFO)
    server.start()
    data = ["--data-dir", str(server.root / "data")]
    assert server.client.list() == []
    assert main(["keys", "create", "me", "--scopes", "jobs:read", *data]) == 0
    said = capsys.readouterr()
    secret, key_id = said.out.strip(), said.err.split()[1]
    assert status(server.client.list) == 401
    server.key = secret
    with Client(server.url, key=secret) as client:
        assert client.list() == []
        assert main(["keys", "list", *data]) == 0
        assert "me" in capsys.readouterr().out
        assert main(["keys", "revoke", key_id, *data]) == 0
        assert status(client.list) == 401
    assert main(["keys", "revoke", "nothing", *data]) == 2
    assert main(["keys", "create", "x", "--tenant", "A B", *data]) == 2
    assert main(["keys", "create", "x", "--days", "-1", *data]) == 2
    server.end()
    said = [record.audit for record in caplog.records if hasattr(record, "audit")]
    about = {"tenant": "default", "key": key_id, "key_name": "me"}
    assert said[:2] == [{"verb": "key_create", "status": 201, **about}, {"verb": "key_revoke", "status": 200, **about}]
    assert [(one["status"], one["key"]) for one in said[2:]] == [(404, "nothing")]
    assert secret not in caplog.text


def test_a_server_does_not_listen_elsewhere_without_keys(tmp_path):
    command = [sys.executable, "-m", "service.cli", "serve", "--host", "0.0.0.0", "--port", "0", "--cpu"]
    command += ["--data-dir", str(tmp_path), "--cache", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "etd-jobs keys create" in ended.stderr
