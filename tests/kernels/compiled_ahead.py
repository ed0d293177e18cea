"""Compiles the Triton kernels for GPUs from Ampere to Blackwell, without one: prints what each takes, as JSON.

It is the launches of a real call that are compiled, and not made.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from etd_ds.kernels import relations
from etd_ds.losses.relations import LARGEST

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Gpu:
    """As much of a GPU's driver as a compiler asks for."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture  # the kernels of one are not another's

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(architecture: int, dtype: torch.dtype, D: int, E: int) -> list:
    """The kernels of one call, in their order."""
    made, launch = [], JITFunction.run

    def instead(kernel, *args, warmup, **options):
        made.append(launch(kernel, *args, warmup=True, **options))

    driver.set_active(Gpu(architecture))
    JITFunction.run = instead
    student, teacher = (torch.zeros(37, 12, size, dtype=dtype) for size in (D, E))
    relations.relation_kl(student, student, teacher, teacher, (30, 7))
    JITFunction.run = launch
    return made


def usage(kernel) -> dict[str, int]:
    """Registers and bytes of stack (spilled registers) of a thread, and bytes of shared memory of a block."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        said = subprocess.run([CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", said).groups()
    return {"registers": int(registers), "stack": int(stack), "shared": kernel.metadata.shared}


if __name__ == "__main__":
    cases = [(architecture, torch.bfloat16, LARGEST, LARGEST) for architecture in (80, 86, 90, 100, 120)]
    # the paper's, and one whose rows are not aligned
    cases += [(90, torch.bfloat16, 32, 64), (90, torch.float16, 8, 12)]
    names = ("forward", "by queries", "by keys")
    found = {
        f"sm_{case[0]} {case[1:]} {name}": usage(kernel)
        for case in cases
        for name, kernel in zip(names, compiled(*case), strict=True)
    }
    print(json.dumps(found))
