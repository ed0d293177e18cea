"""Which GPUs the commands of a reproduction are given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from etd_ds.contract import errors, spec
from etd_ds.stages.reproduce import Workshop


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,6,7")


def workshop(slots: int) -> Workshop:
    return Workshop(Path("out"), Path("cache"), slots=slots)


@pytest.mark.usefixtures("four")
def test_each_slot_has_its_own_of_those_that_are_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert workshop(1)._devices(0, 4) == [2, 3, 6, 7]
    assert [workshop(2)._devices(slot, 2) for slot in range(2)] == [[2, 3], [6, 7]]
    assert [workshop(3)._devices(slot, 1) for slot in range(3)] == [[2], [3], [6]]
    assert [workshop(8)._devices(slot, 1)[0] for slot in range(8)] == [2, 2, 3, 3, 6, 6, 7, 7]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert workshop(2)._devices(1, 2) == [2, 3]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1f2e,GPU-3c4d")
    with pytest.raises(errors.HardwareError, match="wanted numbers"):
        workshop(2)._devices(1, 1)


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    ("slots", "asked", "says"),
    [
        (2, {"gpus": 3}, "each of 2 slots has 2 of the 4"),
        (1, {"gpus": 8}, "has 4 of the 4"),
        (1, {"nodes": 2}, "nodes"),
    ],
)
def test_a_run_that_no_slot_can_take_is_refused(slots: int, asked: dict[str, int], says: str) -> None:
    job = spec.JobSpec.model_validate({"layers": 2, "hidden": 96, "batch_size": 24, **asked})
    with pytest.raises(errors.EtdError, match=says):
        workshop(slots)._check_room(job)


def test_without_gpus_ranks_are_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert workshop(2)._devices(1, 2) == []
    workshop(2)._check_room(spec.JobSpec(layers=2, hidden=96, gpus=2))
