"""`etd-jobs` against a real server."""

from __future__ import annotations

import json
import logging

import pytest
from server_process import Server

from etd_ds.contract import rundir
from service.cli import main
from service.cli.working import JsonLines


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]):
    """Runs a command: (exit code, stdout, stderr)."""

    def run(*arguments: str):
        code = main([*arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_the_way_of_a_job_through_the_shell(server: Server, say, tmp_path, monkeypatch):
    server.start()
    monkeypatch.setenv("ETD_JOBS_URL", server.url)
    code, out, _ = say("plan", "--layers", "3", "--hidden", "192")
    assert (code, json.loads(out)["student"]["layers"]) == (0, 3)
    (tmp_path / "spec.json").write_text('{"layers": 2, "hidden": 192, "steps": 3}')
    code, out, err = say("submit", "--file", str(tmp_path / "spec.json"), "--layers", "3", "--label", "a:b", "--watch")
    assert code == 0
    job = out.strip()
    assert "student 3L-192" in err
    assert f"{job} is succeeded" in err
    assert job in say("list", "--label", "a:b", "--status", "succeeded")[1]
    assert job not in say("list", "--label", "a:c")[1]
    assert json.loads(say("show", job)[1])["spec"]["layers"] == 3
    assert "step 3" in say("logs", job)[1]
    assert say("logs", job, "--follow", "--lines", "1")[1] == "step 3\n"
    assert json.loads(say("checkpoints", job)[1])[-1]["kept"]
    assert say("pull", job, str(tmp_path / "student"))[0] == 0
    assert {path.name for path in (tmp_path / "student").iterdir()} == set(rundir.STUDENT_FILES)
    assert say("cancel", job)[1] == f"{job} is succeeded\n"
    assert say("delete", job)[1] == f"{job} is deleted\n"
    code, _, err = say("show", job)
    assert (code, err) == (2, "etd-jobs: There is no such job.\n")
    code, _, err = say("submit", "--layers", "3", "--hidden", "192", "--webhook-events", "checkpoint", "everything")
    assert (code, "webhook_events" in err) == (2, True), "the service is asked, and knows of no such event"


def test_a_failed_job_is_exit_code_1_and_shows_its_last_words(server: Server, say):
    server.start()
    server.behave("trainer", "crash")
    code, _, err = say("submit", "--layers", "3", "--hidden", "192", "--watch", "--url", server.url)
    assert code == 1
    assert "RuntimeError: the loss is NaN" in err
    assert "trainer_crashed" in err


def test_bad_input_and_no_server_are_exit_code_2(server: Server, say):
    assert say("list", "--url", "http://127.0.0.1:9")[0] == 2
    server.start()
    code, _, err = say("submit", "--layers", "9", "--hidden", "192", "--url", server.url)
    assert (code, err.startswith("etd-jobs: layers: wanted 1 to 6")) == (2, True)
    assert say("submit", "--layers", "x", "--hidden", "192", "--url", server.url)[0] == 2


def test_a_file_may_hold_whatever_a_request_may(server: Server, say, tmp_path):
    server.start()
    file = tmp_path / "spec.json"
    asked = {"layers": 3, "hidden": 192, "steps": 3, "labels": {"a": "b", "c": "d"}, "priority": 7}
    file.write_text(json.dumps(asked))
    submit = ("submit", "--file", str(file), "--url", server.url, "--quiet")
    job = server.client.get(say(*submit, "--label", "c:e")[1].strip())
    assert (job["labels"], job["priority"]) == ({"a": "b", "c": "e"}, 7)
    file.write_text(json.dumps(asked | {"labels": ["a"]}))
    assert "labels: Input should be an object" in say(*submit, "--label", "c:e")[2]
    file.write_text(json.dumps(asked | {"colour": "red"}))
    code, _, err = say(*submit)
    assert (code, "colour: no such field" in err) == (2, True)
    for content in ("{", "[]"):
        file.write_text(content)
        assert "wanted a JSON object" in say(*submit)[2]
    file.unlink()
    assert say(*submit)[0] == 2
    assert say("list", "--url", "http://[::1")[0] == 2


@pytest.mark.parametrize(
    "words",
    [
        "serve --data-dir d --port 99999",
        "serve --data-dir d --redirect 60",
        "serve --data-dir d --slurm",
        "keys create me",
        "keys list --data-dir d",
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(tmp_path, monkeypatch, say, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")  # no Slurm
    monkeypatch.delenv("ETD_JOBS_DATABASE", raising=False)
    code, _, err = say(*words.split())
    assert (code, "wanted" in err) == (2, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        "serve --data-dir d --quota -1",
        "serve --data-dir d --streams many",
        "serve --data-dir d --keep-days -1",
        "serve --data-dir d --grace soon",
        "list --label a",
        "list --status new",
    ],
)
def test_a_flag_that_cannot_be_read_is_named(capsys, words):
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    *_, flag, got = words.split()
    said = capsys.readouterr().err
    assert f"argument {flag}: " in said
    assert repr(got) in said


def test_a_database_that_is_none_is_named_without_what_may_be_secret(tmp_path, say):
    for url in ("nonsense", "nosuchdb://me:secret@host/etd"):
        code, _, err = say("keys", "list", "--database", url)
        assert (code, "secret" in err) == (2, False)
        assert f"got {url.partition(':')[0]}" in err


def test_a_key_is_about_its_tenant_alone_unless_more_is_asked_for(tmp_path, say):
    assert say("keys", "create", "me", "--data-dir", str(tmp_path))[0] == 0
    shown = say("keys", "list", "--data-dir", str(tmp_path))[1]
    assert "jobs:write" in shown
    assert "metrics:read" not in shown


def test_log_lines_are_json_whatever_they_hold():
    record = logging.LogRecord("etd_jobs", logging.INFO, "file", 1, "%s said %s", ("job-1", "a\n\x1b[31mb"), None)
    record.job = "job-1"
    line = JsonLines().format(record)
    assert line.isprintable()
    assert json.loads(line)["message"] == "job-1 said a\n\x1b[31mb"
    assert json.loads(line)["job"] == "job-1"
