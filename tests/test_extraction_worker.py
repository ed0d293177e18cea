"""The extraction worker as a process: one JSON line in, one answer out, and nothing else on its standard output."""

import json
import subprocess
import sys

import pytest

from etd_ds.contract import rundir, spec

JOB = {"layers": 3, "hidden": 192, "mode": "rand"}


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    command = [sys.executable, "-m", "etd_ds.worker", "--cache", str(tmp_path_factory.mktemp("cache"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        ready = json.loads(process.stdout.readline())
        assert ready == {"ready": True, "pid": process.pid}
        yield process
        process.stdin.close()
        process.wait(timeout=30)


def ask(worker, **request):
    worker.stdin.write(json.dumps(request) + "\n")
    worker.stdin.flush()
    while True:
        answer = json.loads(worker.stdout.readline())
        assert answer["id"] == request["id"]
        if "progress" not in answer:
            return answer


@pytest.mark.slow
def test_it_plans_extracts_and_refuses_in_turn(worker, tmp_path):
    planned = ask(worker, id=1, verb="plan", job=JOB)
    assert planned["ok"]["teacher"]["layers"] == 6
    assert planned["ok"]["student"]["hidden"] == 192
    refused = ask(worker, id=2, verb="plan", job=JOB | {"layers": 7})["error"]
    assert (refused["code"], refused["field"], refused["wanted"]) == ("impossible_shape", "layers", "1 to 6")
    unknown = ask(worker, id=3, verb="plan", job=JOB | {"colour": "red"})["error"]
    assert unknown["field"] == "colour"
    run = rundir.RunDir(tmp_path / "run")
    rundir.publish_json(run.job, spec.JobSpec(**JOB))
    made = ask(worker, id=4, verb="extract", run=str(run.root))["ok"]
    assert rundir.Plan.model_validate(made) == run.read_plan()
    assert sorted(path.name for path in run.init.iterdir()) == sorted(rundir.STUDENT_FILES)


@pytest.mark.slow
def test_a_request_that_makes_no_sense_is_answered_without_telling_of_the_inside(worker):
    error = ask(worker, id="a", verb="dance")["error"]
    assert error["code"] == "internal"
    assert "/" not in error["message"]
    assert "Traceback" not in error["message"]
    missing = ask(worker, id=5, verb="extract", run="/nowhere")["error"]
    assert missing["code"] == "bad_run_folder"


@pytest.mark.slow
def test_it_ends_with_its_input_in_the_middle_of_its_work(worker, tmp_path):
    run = rundir.RunDir(tmp_path / "run")
    rundir.publish_json(run.job, spec.JobSpec(layers=3, hidden=192, mode="impt", mlm_head_steps=100_000))
    worker.stdin.write(json.dumps({"id": 6, "verb": "extract", "run": str(run.root)}) + "\n")
    worker.stdin.flush()
    assert "progress" in json.loads(worker.stdout.readline())
    worker.stdin.close()
    assert worker.wait(timeout=30) == 0
    assert not any("ok" in json.loads(line) for line in worker.stdout)
    assert not run.plan.exists()
