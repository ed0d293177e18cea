"""Which tensors the kernels for half precision take."""

import shutil
import sysconfig
from types import SimpleNamespace

import pytest
import torch

from etd_ds.kernels import half


@pytest.mark.parametrize(
    ("capability", "dtype", "served"),
    [
        ((9, 0), torch.bfloat16, True),
        ((8, 0), torch.float16, True),
        ((7, 5), torch.float16, False),  # a T4 trains in fp16, and has no flash attention
        ((9, 0), torch.float32, False),
    ],
)
def test_only_half_precision_on_gpus_that_have_them(monkeypatch, capability, dtype, served):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    x = SimpleNamespace(is_cuda=True, dtype=dtype, device="cuda:0")  # as much of a GPU's tensor as there is here
    assert half.serves(x) is served
    assert not half.serves(torch.zeros(2, dtype=dtype))


@pytest.mark.parametrize("lacks", [None, "compiler", "headers"])
def test_triton_is_used_only_where_it_can_compile_its_launcher(monkeypatch, tmp_path, lacks):
    monkeypatch.setattr(half.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(shutil, "which", lambda name: None if lacks == "compiler" else f"/usr/bin/{name}")
    monkeypatch.setattr(sysconfig, "get_path", lambda *names: str(tmp_path))
    if lacks != "headers":
        (tmp_path / "Python.h").touch()
    assert half.triton.__wrapped__() is (lacks is None)
