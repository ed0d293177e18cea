"""The flags of `etd-jobs serve` that say how jobs go to a cluster."""

from __future__ import annotations

import argparse
import dataclasses

import pytest

from etd_ds.contract import errors
from service.executors import slurm_flags
from service.settings import Settings, SlurmOptions


def read(*argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpu", action="store_true")
    slurm_flags.add(parser)
    return slurm_flags.read(parser.parse_args(argv))


def test_without_the_first_flag_there_is_no_cluster():
    assert read() is None
    with pytest.raises(errors.EtdError, match="--slurm-nodes: wanted only together with --slurm"):
        read("--slurm-nodes", "2")
    with pytest.raises(errors.EtdError, match="--slurm-nodes: wanted 1 or more, got 0"):
        read("--slurm", "--slurm-nodes", "0")


def test_every_option_has_a_flag_and_the_defaults_are_the_settings():
    assert read("--slurm") == SlurmOptions()
    flags = {name for name, *_ in slurm_flags._FLAGS} | {"cpu", "lines"}
    assert flags == {field.name for field in dataclasses.fields(SlurmOptions)}
    given = read("--slurm", "--cpu", "--slurm-nodes", "4", "--slurm-line", "#SBATCH --mem=1G", "--slurm-line", "true")
    assert given == SlurmOptions(cpu=True, nodes=4, lines=("#SBATCH --mem=1G", "true"))


def test_a_time_limit_that_leaves_no_time_is_refused():
    with pytest.raises(errors.EtdError, match="more than the 600 s"):
        read("--slurm", "--slurm-time-minutes", "10")
    assert read("--slurm", "--slurm-time-minutes", "11").time_minutes == 11


def test_what_a_job_may_ask_for_follows_the_cluster(tmp_path):
    alone = Settings(data_dir=tmp_path, slots=4)
    assert alone.job_nodes == 1
    many = Settings(data_dir=tmp_path, slots=64, slurm=SlurmOptions(nodes=2, gpus_per_node=8))
    assert many.job_nodes == 2
