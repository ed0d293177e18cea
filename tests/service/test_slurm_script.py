"""The batch script, read as Slurm and bash read it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from etd_ds.contract import launch, rundir, spec
from service.executors import slurm_script
from service.settings import SlurmOptions


def script(tmp_path, options=SlurmOptions(), *, priority=0, argv=("true",), others=(), **fields):  # noqa: B008
    run = rundir.RunDir(tmp_path / "job-1")
    (run.root / "slurm").mkdir(parents=True, exist_ok=True)
    (run.root / "slurm" / "newest").write_text("3\n")
    return slurm_script.render(
        options,
        runs=[run, *(rundir.RunDir(tmp_path / name) for name in others)],
        folder=run.root / "slurm",
        job=spec.JobSpec(layers=2, hidden=192, **fields),
        attempt=3,
        argv=argv,
        env={"A": "it's"},
        cwd=tmp_path,
        priority=priority,
        mounts=(Path("/data"), Path("/cache")),
    )


def asked(text):
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]


def test_it_asks_for_what_the_spec_says(tmp_path):
    found = asked(script(tmp_path, nodes=2, gpus=4, batch_size=8))
    assert "--nodes=2" in found
    assert "--ntasks-per-node=4" in found
    assert "--gpus-per-node=4" in found
    assert "--no-requeue" in found
    assert '--comment="etd-ds:job-1:3"' in found
    assert not any(line.startswith(("--partition", "--account", "--qos", "--constraint", "--time")) for line in found)


def test_it_asks_for_what_the_operator_says(tmp_path):
    options = SlurmOptions(
        cpu=True,
        partition="gpu",
        account="nlp",
        qos="low",
        constraint="a100&nvlink",
        time_minutes=90,
        warning=300,
        cpus_per_task=8,
        lines=("#SBATCH --mem=64G", "module load cuda"),
    )
    text = script(tmp_path, options)
    found = asked(text)
    for line in ("--partition=gpu", "--account=nlp", "--qos=low", '--constraint="a100&nvlink"', "--time=90",
                 "--cpus-per-task=8", '--signal="USR1@300"', "--mem=64G"):  # fmt: skip
        assert line in found
    assert not any("gpus" in line for line in found)
    lines = text.splitlines()
    assert lines.index("module load cuda") < next(i for i, line in enumerate(lines) if line.startswith("srun "))
    assert found == [line.removeprefix("#SBATCH ") for line in lines[1 : 1 + len(found)]], "sbatch stops reading early"


def test_a_higher_priority_is_less_nice_and_never_negative(tmp_path):
    def nice(priority, step=1):
        (value,) = [
            line for line in asked(script(tmp_path, SlurmOptions(nice_step=step), priority=priority)) if "nice" in line
        ]
        return int(value.split("=")[1])

    assert 0 == nice(100) < nice(1) < nice(0) < nice(-100)
    assert nice(5, step=0) == nice(-5, step=0) == 0


def test_a_container_sees_data_and_cache(tmp_path):
    text = script(tmp_path, SlurmOptions(image="etd-ds-trainer:1"))
    assert "--container-image=etd-ds-trainer:1 --container-mounts=/data:/data,/cache:/cache" in text


def run_it(tmp_path, text):
    """The script under bash, with an `srun` that runs one task here."""
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "srun").write_text('#!/bin/bash\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n')
    (tools / "srun").chmod(0o755)
    done = subprocess.run(
        ["bash"], input=text, text=True, env={"PATH": f"{tools}:/usr/bin:/bin", "SLURM_JOB_ID": "77"}, timeout=30
    )
    return done.returncode, tmp_path / "job-1" / "slurm"


@pytest.mark.parametrize("code", [0, 1, launch.EXIT_BAD_INPUT, launch.EXIT_STOPPED, 137])
def test_the_trainers_exit_code_is_written_down(tmp_path, code):
    argv = ("sh", "-c", f'echo "$A" >"{tmp_path}/said"; exit {code}')
    text = script(tmp_path, argv=argv)
    if code == 0:
        (tmp_path / "job-1" / "result.json").touch()
    _, folder = run_it(tmp_path, text)
    assert (folder / "3.exit").read_text() == f"{code}\n"
    assert (folder / "3.started").read_text() == "77\n"
    assert (tmp_path / "said").read_text() == "it's\n"


def test_the_first_rank_that_failed_gives_the_reason(tmp_path):
    text = script(tmp_path, argv=("sh", "-c", "exit 137"))
    (tmp_path / "job-1" / "slurm" / "3.first").write_text("2\n")
    _, folder = run_it(tmp_path, text)
    assert (folder / "3.exit").read_text() == "2\n"


def test_neither_an_old_attempt_nor_a_second_copy_runs(tmp_path):
    text = script(tmp_path, argv=("touch", str(tmp_path / "ran")))
    (tmp_path / "job-1" / "slurm" / "newest").write_text("4\n")
    assert run_it(tmp_path, text)[0] == 0
    (tmp_path / "job-1" / "slurm" / "newest").write_text("3\n")
    (tmp_path / "job-1" / "slurm" / "3.started").write_text("76\n")
    assert run_it(tmp_path, text)[0] == 0
    assert not (tmp_path / "ran").exists()
    assert (tmp_path / "job-1" / "slurm" / "3.started").read_text() == "76\n"


@pytest.mark.parametrize("srun_says", [0, 1])
def test_when_the_cluster_ends_the_ranks_the_attempt_is_lost(tmp_path, srun_says):
    text = script(tmp_path).replace("srun --kill", f"(exit {srun_says}) # ")
    _, folder = run_it(tmp_path, text)
    assert (folder / "3.exit").read_text() == f"{slurm_script.LOST}\n"


def test_of_several_runs_all_must_be_done(tmp_path):
    text = script(tmp_path, others=["job-2"])
    assert "--job-name=job-1" in asked(text)
    for name, said in (("job-1", slurm_script.LOST), ("job-2", "0")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "result.json").touch()
        _, folder = run_it(tmp_path, text)
        assert (folder / "3.exit").read_text() == f"{said}\n"
        (folder / "3.started").unlink()
