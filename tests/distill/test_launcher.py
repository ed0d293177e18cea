"""The command of the README, through the real `deepspeed` launcher."""

import json
import os
import shutil
import signal
import subprocess
import sys

import launching
import psutil
import pytest
from launching import CONFIGS

from etd_ds.contract import errors, events, launch, rundir
from etd_ds.stages import folder

pytestmark = pytest.mark.slow


def _start(run, cache):
    job = run.read_job().model_copy(update={"gpus": 2})
    argv = launch.train_argv(run, job, cache=cache)
    env = {**os.environ, **launch.train_env(cpu=True)}
    return subprocess.Popen(argv, env=env, stdout=run.log.open("ab"), stderr=subprocess.STDOUT, start_new_session=True)


def _wait_for_a_step(run, launcher):
    begun = run.events.stat().st_size
    while not any(isinstance(event, events.Step) for event in events.read(run.events, begun)):
        try:
            launcher.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(run.log.read_text()[-3000:])


def _family(launcher):
    return psutil.Process(launcher.pid).children(recursive=True)


def test_a_dead_rank_takes_the_job_down_and_a_signal_stops_it_in_order(make_run, small_world):
    run = make_run(steps=10_000, checkpoint_every=10_000, validate_every=10_000, validation_sequences=0)
    first_rank = None
    for number, code in ((signal.SIGKILL, None), (signal.SIGTERM, launch.EXIT_STOPPED)):
        launcher = _start(run, small_world[2])
        _wait_for_a_step(run, launcher)
        family = _family(launcher)
        first_rank = json.loads(run.attempt.read_bytes())["pid"]
        ranks = [process for process in family if any(part.endswith("train.py") for part in process.cmdline()[1:3])]
        assert len(ranks) == 2
        if number == signal.SIGKILL:
            next(process for process in ranks if process.pid != first_rank).send_signal(number)
        else:
            os.kill(first_rank, number)
        returned = launcher.wait(180)
        assert returned == code if code is not None else returned not in (launch.EXIT_DONE, launch.EXIT_STOPPED)
        assert not psutil.wait_procs(family, timeout=90)[1], "processes are left running"
    end = [event for event in events.read(run.events) if isinstance(event, events.End)][-1]
    assert end.outcome == "stopped"
    assert (run.checkpoints / f"step-{end.step:08d}").is_dir()


def test_without_a_service_flags_and_a_student_folder_are_enough(make_run, small_world, tmp_path):

    teacher, corpus, cache = small_world
    run = rundir.RunDir(tmp_path / "out")
    flags = ["--student", str(make_run().init), "--out", str(run.root), "--objective", "minilm"]
    flags += ["--teacher", str(teacher), "--corpus", str(corpus), "--seq-length", "32"]
    flags += ["--steps", "2", "--batch-size", "4", "--validation-sequences", "4"]
    options = {"cache": cache, "config": CONFIGS / "zero1.json", "world_size": 1}
    assert launching.train(None, extra=flags, **options) == [launch.EXIT_DONE]
    assert run.read_result().steps == 2
    assert run.read_job().layers == 2
    assert run.read_result().validation_after.keys() == {"loss", "attention_kl", "value_kl"}
    assert launching.train(None, extra=flags, **options) == [launch.EXIT_DONE], "a finished run stays finished"
    assert launching.train(None, extra=[*flags, "--seed", "5"], **options) == [launch.EXIT_BAD_INPUT]


def test_a_student_that_was_made_elsewhere_trains_and_is_exported(make_run, small_world, tmp_path):
    """With stock files alone; what is missing that nobody can guess is named before anything is written."""
    teacher, corpus, cache = small_world
    student, run = tmp_path / "student", rundir.RunDir(tmp_path / "out")
    shutil.copytree(make_run().init, student)
    for name in ("README.md", "extraction.json", "vocab.txt"):
        (student / name).unlink()
    with pytest.raises(errors.RunFolderError, match=r"lacks vocab\.txt;"):
        folder.lay(run, student=student, given={})
    assert not run.root.exists()
    shutil.copy(make_run().init / "vocab.txt", student)
    flags = ["--student", str(student), "--out", str(run.root), "--teacher", str(teacher), "--corpus", str(corpus)]
    flags += ["--seq-length", "32", "--steps", "1", "--batch-size", "4", "--validation-sequences", "4"]
    options = {"cache": cache, "config": CONFIGS / "zero1.json", "world_size": 1}
    assert launching.train(None, extra=flags, **options) == [launch.EXIT_DONE]
    assert set(run.read_result().files) == set(rundir.STUDENT_FILES)
    assert "not extracted by etd-ds" in (run.student / "extraction.json").read_text()
    assert "## Distillation" in (run.student / "README.md").read_text()


def test_half_of_a_launchers_environment_is_refused(tmp_path):
    env = {key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    command = [sys.executable, str(CONFIGS.parent / "etd_ds" / "train.py"), "--deepspeed", "x", "--run", str(tmp_path)]
    done = subprocess.run(command, env={**env, "RANK": "0", "WORLD_SIZE": "1"}, capture_output=True, text=True)
    assert done.returncode == launch.EXIT_BAD_INPUT
    assert "LOCAL_RANK, MASTER_ADDR, MASTER_PORT" in done.stderr
