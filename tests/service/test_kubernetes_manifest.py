"""The Kubernetes Job of a run: valid by the published schemas, and its command starts the ranks that it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from etd_ds.contract import launch, rundir, spec
from service.cli import main
from service.executors.kubernetes_manifest import KubernetesOptions, node_argv, render

OPTIONS = KubernetesOptions(image="registry/etd-ds-trainer:1", claim="etd")


def made(nodes=1, gpus=1, options=OPTIONS):
    job = spec.JobSpec(layers=2, hidden=192, nodes=nodes, gpus=gpus, batch_size=nodes * gpus)
    return render(options, run=rundir.RunDir(Path("/data/jobs/job-1")), job=job)


@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
@pytest.mark.parametrize(
    "options", [OPTIONS, KubernetesOptions(image="i", claim="c", cpu=True, cpus="8", memory="64Gi", mount=Path("/x"))]
)
def test_it_is_what_the_published_schema_says(version, options):
    for one in (*made(options=options), *made(nodes=4, gpus=8, options=options)):
        kubernetes_validate.validate(one, version, strict=True)


def test_server_and_worker_are_valid_and_those_of_the_composition():
    docker = launch.REPOSITORY / "docker"
    composed = yaml.safe_load((docker / "compose.yaml").read_text())["services"]
    there = list(yaml.safe_load_all((docker / "kubernetes.yaml").read_text()))
    for one in there:
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
    pods = {one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in there if one["kind"] == "Deployment"}
    for name, service in (("etd-server", "service"), ("etd-worker", "worker-gpu")):
        assert pods[name]["containers"][0]["args"] == composed[service]["command"]


def test_several_nodes_know_each_other_by_name_and_one_needs_nobody():
    service, job = made(nodes=2, gpus=8)
    assert (service["kind"], service["spec"]["clusterIP"]) == ("Service", "None")
    pod = job["spec"]["template"]
    assert service["spec"]["selector"] == pod["metadata"]["labels"]
    assert pod["spec"]["subdomain"] == service["metadata"]["name"]
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (2, 2)
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    command = pod["spec"]["containers"][0]["command"]
    assert command[command.index("--master_addr") + 1] == "job-1-0.job-1"
    (alone,) = made()
    assert "subdomain" not in alone["spec"]["template"]["spec"]


def test_exit_codes_mean_what_the_trainer_means_by_them():
    (job,) = made()
    rules = job["spec"]["podFailurePolicy"]["rules"]
    codes = {code: rule["action"] for rule in rules for code in rule.get("onExitCodes", {}).get("values", [])}
    assert codes == {launch.EXIT_STOPPED: "Ignore", launch.EXIT_BAD_INPUT: "FailJob"}
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never", "which these rules need"


@pytest.mark.slow
def test_the_commands_of_all_pods_together_are_the_ranks(tmp_path):
    """Run by DeepSpeed's own launcher, with a script in the trainer's place."""
    train = tmp_path / "etd_ds" / "train.py"
    train.parent.mkdir()
    train.write_text(
        "import os, sys\n"
        "names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR')\n"
        "print('rank', *(os.environ[name] for name in names), *sys.argv[2:], sep=' ', flush=True)\n"
        f"sys.exit({launch.EXIT_STOPPED})\n"
    )
    options = KubernetesOptions(image="i", claim="c", python=sys.executable, repository=tmp_path, cpu=True)
    job = spec.JobSpec(layers=2, hidden=192, nodes=2, gpus=1, batch_size=2)
    argv = node_argv(options, run=rundir.RunDir(Path("/data/jobs/job-1")), job=job)
    said = []
    for index in ("0", "1"):
        command = [part.replace("$(JOB_COMPLETION_INDEX)", index) for part in argv]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=launch.train_env(cpu=True))
        assert done.returncode == launch.EXIT_STOPPED, done.stderr
        said += [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("rank ")]
    assert [one[:4] for one in said] == [[rank, "0", "2", "job-1-0.job-1"] for rank in ("0", "1")]
    assert said[0][-4:] == ["--run", "/data/jobs/job-1", "--cache", "/data/cache"]


def test_the_command_prints_it_and_says_what_is_wrong(tmp_path, capsys):
    run = rundir.RunDir(tmp_path / "jobs" / "job-7")
    rundir.publish_json(run.job, {"layers": 2, "hidden": 192, "nodes": 2, "batch_size": 2})
    where = ["--image", "i", "--claim", "c", "--mount", str(tmp_path), "--cache", str(tmp_path / "cache")]
    assert main(["manifest", str(run.root), *where]) == 0
    for one in yaml.safe_load_all(capsys.readouterr().out):
        kubernetes_validate.validate(one, "1.31", strict=True)
    run.root.rename(tmp_path / "jobs" / "Job_7")
    for folder, text in (
        ("/elsewhere/job-7", "below --mount"),
        (tmp_path / "jobs" / "Job_7", "lower-case"),
        (tmp_path / "jobs" / "none", "missing"),
    ):
        assert main(["manifest", str(folder), *where]) == 2
        assert text in capsys.readouterr().err
