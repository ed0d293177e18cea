"""Where the kernels for half precision run: torch's flash attention, and ours in Triton."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import sysconfig
from pathlib import Path

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16)
CAPABILITY = (8, 0)
"""Of the first GPUs that both are made for (Ampere); a V100 or T4 trains in fp16 without them."""


def serves(x: Tensor) -> bool:
    """Whether those kernels can take `x`."""
    return x.is_cuda and x.dtype in DTYPES and torch.cuda.get_device_capability(x.device) >= CAPABILITY


@functools.cache
def triton() -> bool:
    """Whether Triton is here, and what it compiles its launcher by: a C compiler and Python's headers."""
    compiler = shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_path("include", "posix_prefix"), "Python.h")
    return importlib.util.find_spec("triton") is not None and compiler is not None and headers.is_file()
