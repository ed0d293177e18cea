"""What the page for operators names is there."""

from __future__ import annotations

import re

import pytest

from etd_ds.contract import launch, spec
from service import status
from service.cli import main

PAGE = (launch.REPOSITORY / "docs" / "operations.md").read_text()
OF_THE_TRAINER = PAGE[PAGE.index("## On several machines") : PAGE.index("## On Kubernetes")]


def test_every_flag_on_the_page_is_one_of_ours(capsys):
    for command in ("serve", "worker", "manifest", "restore"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    foreign = {"--help", "--profile", "--mem", "--rm", "--format", "--file", "--dbname"}  # docker, sbatch, PostgreSQL
    foreign |= {"--build-arg", "--from-literal", "--restart", "--env"}  # docker, kubectl
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE.replace(OF_THE_TRAINER, ""))) - foreign <= known


def test_every_code_on_the_page_is_one_that_jobs_fail_with():
    # of specs, of a job's JSON, of the metrics, of events
    others = {*spec.JobSpec.model_fields, "together_with", "etd_workers", "peers_lost"}
    codes = set(re.findall(r"`([a-z]+_[a-z]+)`", PAGE)) - others
    assert codes
    assert codes <= set(status.MESSAGES)


def test_every_metric_on_the_page_is_there():
    source = "".join((launch.REPOSITORY / "service" / name).read_text() for name in ("metrics.py", "routes/health.py"))
    for name in re.findall(r"`(etd_[a-z_]+)`", PAGE):
        assert f'"{name}"' in source, name


def test_every_file_on_the_page_is_there():
    for name in re.findall(r"docker/[a-z.A-Z]+|tests/[a-z_/0-9]+\.py", PAGE):
        assert (launch.REPOSITORY / name).exists(), name
