"""DeepSpeed's Adams are compiled by one process at a time, and a build that was killed stops nobody."""

import threading

import pytest
import torch
import torch.utils.cpp_extension
from deepspeed import git_version_info

from etd_ds.engine import adam, ranks


@pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs there may be a compiler")
@pytest.mark.parametrize(("accelerator", "cpu_adam", "own"), [("cpu", 1, True), ("cpu", 0, False), ("cuda", 1, False)])
def test_they_are_taken_if_both_were_compiled_for_this_accelerator(monkeypatch, accelerator, cpu_adam, own):
    monkeypatch.setattr(git_version_info, "accelerator_name", accelerator)
    monkeypatch.setattr(git_version_info, "installed_ops", {"fused_adam": 1, "cpu_adam": cpu_adam})
    assert ranks.hardware().compiler is own


@pytest.mark.parametrize(
    ("release", "own"), [("13.0", True), ("11.8", False), (None, False)], ids=["same", "another", "none"]
)
def test_they_are_compiled_only_by_a_cuda_of_torchs_version(monkeypatch, tmp_path, release, own):
    monkeypatch.setattr(torch.utils.cpp_extension, "CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    if release is not None:  # a CUDA that is only for running programs has a home too, and no compiler in it
        nvcc = tmp_path / "bin" / "nvcc"
        nvcc.parent.mkdir()
        nvcc.write_text(f"#!/bin/sh\necho Cuda compilation tools, release {release}, V{release}.1\n")
        nvcc.chmod(0o755)
    assert adam.compilable() is own


def test_a_lock_that_a_killed_build_left_behind_is_not_waited_for(tmp_path):
    (tmp_path / "lock").touch()
    with adam.turn(tmp_path):
        assert not (tmp_path / "lock").exists()


def test_the_lock_of_a_build_that_goes_on_is_left_alone(tmp_path):
    came = threading.Event()

    def other():
        with adam.turn(tmp_path):
            came.set()

    with adam.turn(tmp_path):
        (tmp_path / "lock").touch()  # torch's, while it compiles
        thread = threading.Thread(target=other)
        thread.start()
        assert not came.wait(0.2)
        assert (tmp_path / "lock").exists()
    assert came.wait(30)
    thread.join()
