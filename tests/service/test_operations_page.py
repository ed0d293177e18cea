"""What the page for operators names is there."""

from __future__ import annotations

import re

import pytest

from etd_ds.contract import launch, spec
from service import status
from service.cli import main

PAGE = (launch.REPOSITORY / "docs" / "operations.md").read_text()
OF_THE_TRAINER = PAGE[PAGE.index("## On several machines") : PAGE.index("## Containers")]


def test_every_flag_on_the_page_is_one_of_the_server(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    foreign = {"--help", "--profile", "--mem", "--rm"}  # of docker and sbatch
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE.replace(OF_THE_TRAINER, ""))) - foreign <= known


def test_every_code_on_the_page_is_one_that_jobs_fail_with():
    others = {*spec.JobSpec.model_fields, "together_with", "etd_workers"}  # of specs, of a job's JSON, of the metrics
    codes = set(re.findall(r"`([a-z]+_[a-z]+)`", PAGE)) - others
    assert codes
    assert codes <= set(status.MESSAGES)


def test_every_file_on_the_page_is_there():
    for name in re.findall(r"docker/[a-z.A-Z]+", PAGE):
        assert (launch.REPOSITORY / name).exists(), name
