"""The CUDA path's devices and dtypes agree, and nothing in it waits for a number: on tensors without memory."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from etd_ds.kernels import half

HERE = Path(__file__).parent
TORCH = Path(torch.__file__).parent


@pytest.fixture
def device_that_does_nothing(tmp_path):
    """Arguments of fake_cuda.py."""
    if torch.version.cuda is not None:
        return []
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler where torch has no CUDA")
    library = tmp_path / "fake_cuda.so"
    command = ["c++", "-std=c++20", "-shared", "-fPIC", f"-I{TORCH / 'include'}", HERE / "fake_cuda.cpp", "-o", library]
    libraries = [f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]
    subprocess.run([*command, *libraries], check=True, timeout=300)
    return [library]


@pytest.mark.slow
@pytest.mark.skipif(not half.triton(), reason="needs triton (Linux only), a C compiler and Python's headers")
def test_steps_run_on_a_gpu_that_is_not_there(device_that_does_nothing):
    command = [sys.executable, HERE / "fake_cuda.py", *device_that_does_nothing]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 27
    for case, launched in found.items():
        fast = "bfloat16" in case and "compat" not in case  # fp16 here is that of a GPU that has neither
        assert (launched["flash"] > 0) is fast, case
        # forward, and by queries and by keys, of both its terms
        assert launched["kernel"] == (6 if fast and "minilm" in case else 0), case
