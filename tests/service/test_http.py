"""The API of a real server over HTTP: what it answers, and what it refuses before any work."""

from __future__ import annotations

import io
import json
import shutil
import signal
import tarfile

import httpx
import pytest
from server_process import Server

from etd_ds.contract import events, teachers
from service.client import ServiceError

SMALL = {"layers": 3, "hidden": 192, "steps": 3}


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    """One server for all tests of this file that only ask."""
    root = tmp_path_factory.mktemp("server")
    (root / "bert").mkdir()
    config = json.loads((teachers.embedded_folder() / "config.json").read_text())
    (root / "bert" / "config.json").write_text(json.dumps(config))
    (root / "gpt").mkdir()
    (root / "gpt" / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    (root / "gpt" / "model.safetensors").touch()
    server = Server(root).start("--teacher", f"no-weights={root / 'bert'}", "--teacher", f"gpt={root / 'gpt'}",
                                "--teacher", f"mini={teachers.embedded_folder()}",
                                "--corpus", f"nothing={root / 'gpt'}")  # fmt: skip
    with httpx.Client(base_url=server.url, timeout=30) as client:
        client.server = server
        yield client
    server.client.close()
    server.end()


@pytest.fixture(scope="module")
def done(http):
    """A job that has succeeded."""
    answer = http.post("/jobs", json=SMALL)
    assert answer.status_code == 201
    http.server.client.wait(answer.json()["id"])
    return http.get(answer.headers["location"]).json()


BAD = [
    ({"layers": 7}, "layers"),
    ({"layers": 0}, "layers"),
    ({"layers": "3"}, "layers"),
    ({"layers": 3.5}, "layers"),
    ({"layers": True}, "layers"),
    ({"layers": None}, "layers"),
    ({"hidden": 100}, "hidden"),
    ({"hidden": 10**9}, "hidden"),
    ({"hidden": 10**30}, "hidden"),
    ({"hidden": 768}, "hidden"),
    ({"ffn": 10_000}, "ffn"),
    ({"learning_rate": float("nan")}, "learning_rate"),
    ({"learning_rate": float("inf")}, "learning_rate"),
    ({"colour": "red"}, "colour"),
    ({"mode": "magic"}, "mode"),
    ({"steps": 1, "epochs": 1}, "steps"),
    ({"layer_selection": [1, 2]}, "layer_selection"),
    ({"teacher": "nobody/knows-this"}, "teacher"),
    ({"teacher": "../../etc"}, "teacher"),
    ({"teacher": "/etc"}, "teacher"),
    ({"teacher": str(teachers.embedded_folder())}, "teacher"),
    ({"teacher": "https://example.org/model"}, "teacher"),
    ({"teacher": "gpt"}, "teacher"),
    ({"teacher": "no-weights"}, "teacher"),
    ({"corpus": "/etc/passwd"}, "corpus"),
    ({"corpus": "text.txt"}, "corpus"),
    ({"gpus": 3, "batch_size": 3}, "gpus"),
    ({"nodes": 2}, "nodes"),
    ({"deepspeed": "no_such_config"}, "deepspeed"),
    ({"labels": {"a": 1}}, "labels"),
    ({"priority": 1000}, "priority"),
]


@pytest.mark.parametrize(("change", "field"), BAD, ids=[json.dumps(change)[:40] for change, _ in BAD])
def test_bad_specs_are_refused_by_name_before_any_work(http, change, field):
    folders = sorted(path.name for path in (http.server.root / "data").glob("*/*"))
    answer = http.post("/jobs", content=json.dumps({**SMALL, **change}))
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["errors"][0]["field"] == field
    assert problem["errors"][0]["message"].startswith(field)
    assert problem["status"] == 422
    assert problem["code"]
    assert folders == sorted(path.name for path in (http.server.root / "data").glob("*/*"))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe", b"[" * 20_000, b"{} {}"])
def test_a_body_that_is_no_json_object(http, body):
    answer = http.post("/jobs", content=body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, None)


def test_a_body_that_is_too_large(http):
    answer = http.post("/jobs", content=b" " * 100_000)
    assert (answer.status_code, answer.json()["code"]) == (413, "request_too_large")


def test_a_plan_makes_nothing(http):
    before = http.get("/jobs").json()
    assert http.post("/v1/plan", json=SMALL).json()["student"]["hidden"] == 192
    refused = http.post("/v1/plan", json={**SMALL, "layers": 9})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "layers")
    assert http.get("/jobs").json() == before


@pytest.mark.parametrize(("name", "got"), [("status", "done"), ("limit", "0"), ("label", "a")])
def test_a_bad_parameter_is_named(http, name, got):
    (error,) = http.get(f"/jobs?{name}={got}").json()["errors"]
    assert (error["field"], error["got"]) == (name, got)


def test_missing_fields_are_all_named(http):
    answer = http.post("/jobs", json={})
    assert {error["field"] for error in answer.json()["errors"]} == {"layers", "hidden"}


@pytest.mark.parametrize("path", ["/jobs/job-0", "/jobs/..%2f..", "/nothing", "/jobs/x/events", "/jobs/x/student/y"])
def test_what_is_not_there_is_a_404_problem(http, path):
    answer = http.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


def test_a_job_shows_what_was_asked_and_what_came_of_it(http, done):
    assert {"id", "status", "spec", "student", "events", "links"} <= done.keys()
    assert (done["status"], done["spec"]["layers"], done["spec"]["teacher"]) == ("succeeded", 3, "embedded")
    assert {"layers", "hidden", "heads", "ffn", "parameters", "compression", "extraction_seconds"} <= done[
        "student"
    ].keys()
    assert done["progress"]["step"] == 3
    assert done["result"]["files"]["config.json"]["url"] == f"/jobs/{done['id']}/student/config.json"
    for name, link in done["links"].items():
        if name not in ("cancel", "pause", "resume", "retry"):
            assert http.get(link).status_code == 200, name
    assert http.get(f"/v1/jobs/{done['id']}").json()["links"]["self"] == f"/v1/jobs/{done['id']}"
    assert done["id"] in [job["id"] for job in http.get("/jobs").json()["data"]]


def test_an_alias_stays_an_alias_to_those_who_ask(http):
    job = http.post("/jobs", json={**SMALL, "teacher": "mini"}).json()
    assert job["spec"]["teacher"] == "mini"
    inside = json.loads((http.server.run(job["id"]) / "job.json").read_text())
    assert inside["teacher"] == str(teachers.embedded_folder())
    http.server.client.wait(job["id"])


def test_the_tar_and_the_files_are_the_student(http, done):
    answer = http.get(done["links"]["student"])
    assert int(answer.headers["content-length"]) == len(answer.content)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        assert set(tar.getnames()) == set(done["result"]["files"])
        for name, digest in done["result"]["files"].items():
            single = http.get(digest["url"])
            assert single.content == tar.extractfile(name).read()
            assert single.headers["etag"] == f'"{digest["sha256"]}"'
    assert http.get(done["links"]["student"]).content == answer.content
    assert http.head(done["links"]["student"]).headers["content-length"] == str(len(answer.content))


def test_every_revision_is_a_student(http, done):
    assert http.get(f"/jobs/{done['id']}/student/config.json?revision=init").text == "{}"
    assert http.get(f"/jobs/{done['id']}/student/config.json?revision=step-3").text == "step-3"
    with tarfile.open(fileobj=io.BytesIO(http.get(f"/jobs/{done['id']}/student?revision=step-3").content)) as tar:
        assert tar.getnames() == ["config.json"]
    gone = http.get(f"/jobs/{done['id']}/student?revision=step-1")
    assert (gone.status_code, gone.json()["code"]) == (404, "revision_not_found")


def test_ranges_and_conditions(http, done):
    url = f"/jobs/{done['id']}/student/model.safetensors"
    full = http.get(url)
    part = http.get(url, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, full.content[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(full.content)}"
    tag = full.headers["etag"]
    assert http.get(url, headers={"If-None-Match": tag}).status_code == 304
    assert http.get(url, headers={"Range": "bytes=1-2", "If-Range": tag}).status_code == 206
    assert http.get(url, headers={"Range": "bytes=1-2", "If-Range": '"other"'}).content == full.content
    beyond = http.get(url, headers={"Range": "bytes=999999999-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(full.content)}")
    assert http.get(url.replace("model.safetensors", "..%2f..%2fjob.json")).status_code == 404


def test_events_replay_from_any_offset_as_stream_and_as_list(http, done):
    url = done["links"]["events"]
    listed = http.get(url, headers={"Accept": "application/json"}).json()
    assert listed["status"] == "succeeded"
    assert [event["step"] for event in listed["data"] if event["type"] == "step"] == [1, 2, 3]
    streamed = list(http.server.client.events(done["id"]))
    assert streamed[:-1] == listed["data"]
    assert (streamed[-1]["type"], streamed[-1]["status"]) == ("status", "succeeded")
    for event, following in zip(listed["data"], listed["data"][1:], strict=False):
        assert next(http.server.client.events(done["id"], after=event["id"])) == following
        rest = http.get(url, headers={"Accept": "application/json"}, params={"after": event["id"]}).json()
        assert rest["data"][0] == following
    assert http.get(url, headers={"Last-Event-ID": "abc"}).status_code == 422


def test_pull_brings_the_files_and_nothing_else(http, done, tmp_path):
    http.server.client.pull(done["id"], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(done["result"]["files"])
    seen = []
    http.server.client.pull(done["id"], tmp_path, progress=lambda *numbers: seen.append(numbers))
    total = sum(one["size"] for one in done["result"]["files"].values())
    assert seen[-1] == (total, total), "what is there is not fetched again"


def test_events_may_hold_any_character(http):
    job = http.server.client.wait(http.server.client.create(SMALL)["id"])
    odd = "a\u2028b\x85c\x1dd"
    events.append(http.server.run(job["id"]) / "events.jsonl", events.Warn(message=odd))
    assert odd in [event.get("message") for event in http.server.client.events(job["id"])]


def test_a_list_of_very_many_events_comes_in_parts(http):
    job = http.server.client.wait(http.server.client.create(SMALL)["id"])
    line = events.Warn(message="again").model_dump_json() + "\n"
    with (http.server.run(job["id"]) / "events.jsonl").open("a") as out:
        out.write(line * 10_000)
    ask = {"headers": {"Accept": "application/json"}}
    first = http.get(job["links"]["events"], **ask).json()
    rest = http.get(job["links"]["events"], params={"after": first["next"]}, **ask).json()
    assert len(first["data"]) == 10_000
    assert [event["message"] for event in rest["data"]] == ["again"] * len(rest["data"])
    assert rest["data"]


def test_a_job_whose_folder_is_damaged_or_lost_can_be_deleted(http):
    job = http.server.client.wait(http.server.client.create(SMALL)["id"])
    (http.server.run(job["id"]) / "result.json").write_text("{")
    assert (http.get(f"/jobs/{job['id']}").json()["result"], http.get("/jobs").status_code) == (None, 200)
    damaged = http.get(job["links"]["student"])
    assert (damaged.status_code, str(http.server.root) in damaged.text) == (500, False)
    shutil.rmtree(http.server.run(job["id"]))
    http.server.client.delete(job["id"])
    assert http.get(f"/jobs/{job['id']}").status_code == 404


def test_where_the_operator_keeps_things_is_not_said(http):
    answer = http.post("/jobs", json={**SMALL, "corpus": "nothing"})
    assert answer.json()["detail"] == "corpus: nothing holds no text"
    assert str(http.server.root) not in answer.text


def test_no_lines_of_a_log_are_no_lines(http, done):
    assert http.get(f"{done['links']['log']}?lines=0").text == ""


def test_the_server_says_what_it_is(http):
    assert http.get("/").json()["name"] == "etd-ds"
    assert http.get("/healthz").json() == {"status": "ok"}, "whoever has no key hears no more"
    schema = http.get("/openapi.json").json()
    assert "JobRequest" in schema["components"]["schemas"]
    assert http.put("/jobs").status_code == 405


def test_metrics_and_readiness(http, done):
    assert http.get("/readyz").json()["ready"]
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    jobs = http.get("/jobs", params={"limit": 500}).json()["data"]
    assert float(values['etd_jobs{status="succeeded"}']) == len([job for job in jobs if job["status"] == "succeeded"])
    assert float(values['etd_slots{state="free"}']) == 2
    shown = 'etd_http_request_seconds_count{method="GET",route="/jobs/{job_id}",status="200"}'
    before = int(values[shown])
    http.get(f"/jobs/{done['id']}")
    assert f"{shown} {before + 1}" in http.get("/metrics").text
    assert done["id"] not in answer.text


def test_a_worker_that_dies_is_started_again_and_leaves_nothing(server):
    server.start()
    server.behave("worker", "die on extract")
    with pytest.raises(ServiceError) as refused:
        server.client.create(SMALL)
    assert (refused.value.status, refused.value.problem["code"]) == (503, "extraction_failed")
    assert server.client.list() == []
    assert list((server.root / "data" / "jobs").iterdir()) == []
    server.behave("worker", "")
    server.client.wait(server.client.create(SMALL)["id"])


def test_an_extraction_has_a_time_limit(server):
    server.start("--extraction-timeout", "0.5")
    server.behave("worker", "hang on extract")
    with pytest.raises(ServiceError) as refused:
        server.client.create(SMALL)
    assert refused.value.problem["code"] == "extraction_timeout"


def test_a_server_killed_while_extracting_leaves_no_half_job(server):
    server.start("--extraction-timeout", "60")
    server.behave("worker", "hang on extract")
    with httpx.Client(base_url=server.url) as http, pytest.raises(httpx.TimeoutException):
        http.post("/jobs", json=SMALL, timeout=1.0)
    assert len(list((server.root / "data" / "jobs").iterdir())) == 1
    server.end(signal.SIGKILL)
    (server.run("job-orphan")).mkdir()
    server.behave("worker", "")
    server.start()
    assert server.client.list() == []
    assert list((server.root / "data" / "jobs").iterdir()) == []
