"""How the whole suite runs: `make test` has two workers, each of which takes one file after the other."""

import os
from pathlib import Path

import hypothesis
import pytest

import etd_ds  # noqa: F401  (before torch: it decides how OpenMP threads wait)

LONG = (
    "service/test_slurm.py",
    "distill/test_runs.py",
    "stages/test_reproduce.py",
    "service/test_worker.py",
    "service/test_running.py",
    "acceptance/test_main_job.py",
    "evaluate/test_protocol.py",
    "distill/test_launcher.py",
    "service/test_chaos.py",
    "service/test_extracting.py",
    "distill/test_hosts.py",
    "stages/test_extract.py",
    "service/test_together.py",
    "data/test_preparation.py",
    "service/test_artifacts_in_s3.py",
)
"""What takes longest, begun first, so that the end is not one worker's long file."""

if "PYTEST_XDIST_WORKER" in os.environ:  # this process has others beside it
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# no test is about time
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    # ranks are CPU processes here, more of them than a machine may have GPUs; those are for `pytest -m gpu` alone
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {Path(__file__).parent / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path, len(LONG)))
