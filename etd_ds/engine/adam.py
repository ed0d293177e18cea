"""DeepSpeed's own Adams are compiled on first use: here before ranks meet, and whatever build was killed before."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def compiled() -> bool:
    """Whether DeepSpeed was installed with both compiled for this accelerator, as in docker/trainer.Dockerfile."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.git_version_info import accelerator_name, installed_ops

    return accelerator_name == get_accelerator()._name and all(map(installed_ops.get, ("fused_adam", "cpu_adam")))


def compilable() -> bool:
    """Whether CUDA's compiler is here, and of a version that torch's own CUDA goes with; many a cluster has another."""
    from deepspeed.ops.op_builder import builder

    try:
        return bool(builder.assert_no_cuda_mismatch())
    except (builder.MissingCUDAException, builder.CUDAMismatchException):
        return False


def load(config: Mapping[str, Any]) -> None:
    """Have FusedAdam, or CPUAdam where a config offloads it, compiled; that takes a minute or two, once a machine.

    One machine may take longer than another, and a collective waits for less.
    """
    from deepspeed.ops.op_builder import CPUAdamBuilder, FusedAdamBuilder
    from torch.utils import cpp_extension

    offload = config.get("zero_optimization", {}).get("offload_optimizer") or {}
    builder = FusedAdamBuilder() if offload.get("device", "none") == "none" else CPUAdamBuilder()
    if not compiled():
        with turn(Path(cpp_extension._get_build_directory(builder.name, verbose=False))):
            builder.load(verbose=False)


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """One process at a time compiles in `folder`, and none waits for one that is gone."""
    with (folder / "turn").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the system frees it when its holder ends
        # torch's own lock is a file that a killed build leaves behind, and that later ones would wait for for ever
        (folder / "lock").unlink(missing_ok=True)
        yield
