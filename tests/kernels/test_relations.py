"""The Triton kernel is its definition: in the interpreter, by its compiler's word for a GPU, and on one if there is."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from etd_ds.losses import Segments, relations

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton (Linux only)")
ROOT = Path(__file__).parents[2]


def _printed(script, **env):
    command = [sys.executable, str(Path(__file__).with_name(script))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_in_the_interpreter_it_gives_the_loss_and_gradients_of_the_definition():
    found = _printed("interpreted.py", TRITON_INTERPRET="1")
    assert max(found["fp32"].values()) < 1e-6
    assert max(found["fp16"].values()) < 1e-3
    # the loss itself is a difference of large numbers then; the gradient is not
    assert max(found["fp16, nearly learned"][name] for name in ("dq", "dk")) < 2e-3


@pytest.mark.slow
def test_it_compiles_for_every_gpu_and_fits_into_it(tmp_path):
    found = _printed("compiled_ahead.py", TRITON_CACHE_DIR=str(tmp_path))
    assert len(found) == 21
    # of a block, where there is least: compute capability 8.6, 8.9 and 12.0
    assert all(usage["shared"] <= 99 * 1024 for usage in found.values()), found
    assert all(usage["stack"] <= 16 for usage in found.values()), found  # bytes that do not fit into registers


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_gpu_it_gives_the_loss_and_gradients_of_the_definition(dtype):
    lengths = (300, 1, 64, 130, 512)
    torch.manual_seed(0)
    q_s, k_s, q_t, k_t = (torch.randn(sum(lengths), 12, size).to("cuda", dtype) for size in (32, 32, 64, 64))
    found = []
    for precision in (dtype, torch.float64):
        q, k = (x.to(precision).requires_grad_() for x in (q_s, k_s))
        loss = relations.relation_kl_sum(q, k, q_t.to(precision), k_t.to(precision), Segments.packed(lengths))
        found.append((loss.detach(), *torch.autograd.grad(loss, (q, k))))
    for got, wanted in zip(*found, strict=True):
        assert (got.double() - wanted).norm() / wanted.norm() < 4 * torch.finfo(dtype).eps
