"""Who a rank is when a cluster started it."""

from __future__ import annotations

from pathlib import Path

import pytest

from etd_ds.contract import cluster, launch, rundir, spec

# As `srun` of Slurm 22.05 sets it for the last of 2 × 2 tasks.
TASK = {
    "SLURM_JOB_ID": "32001",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "CUDA_VISIBLE_DEVICES": "0,1",
}


def test_a_task_of_srun_is_a_rank():
    assert cluster.slurm_env(TASK) == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_SIZE": "2",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "28001",
    }


def test_a_task_with_a_device_of_its_own_calls_it_the_first():
    assert cluster.slurm_env(TASK | {"CUDA_VISIBLE_DEVICES": "0"})["LOCAL_RANK"] == "0"
    assert cluster.slurm_env(TASK | {"CUDA_VISIBLE_DEVICES": ""})["LOCAL_RANK"] == "1"


def test_a_given_meeting_place_is_kept():
    found = cluster.slurm_env(TASK | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5"})
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.0.0.1", "5")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "1", "SLURM_NODEID": "0"},  # a batch script's own
        TASK | {"RANK": "0", "WORLD_SIZE": "2"},  # of a launcher under srun
    ],
)
def test_every_other_process_is_left_alone(environ):
    assert cluster.slurm_env(environ) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n[1-2]", "n1"), ("gpu[003-005,9],x1", "gpu003"), ("a,b", "a"), ("r[1-2]-a", "r1-a")],
)
def test_the_first_host_of_a_node_list(nodes, first):
    assert cluster.first_host(nodes) == first


@pytest.mark.parametrize(
    ("counts", "node", "tasks"), [("2(x3),1", 2, 2), ("2(x3),1", 3, 1), ("4", 0, 4), ("1,3", 1, 3)]
)
def test_tasks_of_a_node(counts, node, tasks):
    environ = TASK | {"SLURM_STEP_TASKS_PER_NODE": counts, "SLURM_NODEID": str(node)}
    assert cluster.slurm_env(environ)["LOCAL_SIZE"] == str(tasks)


def test_a_rank_runs_the_trainer_of_its_own_machine(tmp_path):
    job = spec.JobSpec(layers=2, hidden=192, deepspeed="zero1")
    argv = cluster.rank_argv(
        rundir.RunDir(tmp_path), job, cache=Path("/cache"), python="/opt/python", repository=Path("/opt/etd")
    )
    assert argv[:4] == ["/opt/python", "/opt/etd/etd_ds/train.py", "--deepspeed", "/opt/etd/ds_configs/zero1.json"]
    assert argv[4:] == ["--run", str(tmp_path), "--cache", "/cache"]
    assert launch.ds_config(job).name == "zero1.json"
