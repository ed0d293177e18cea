"""Compiles the Triton kernels for GPUs from Ampere to Blackwell, without one: prints what each takes, as JSON."""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from etd_ds.kernels import relations
from etd_ds.losses.relations import LARGEST

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compiled(architecture: int, kernel, dtype: str, D: int, E: int, **options) -> dict[str, int]:
    """Registers and bytes of stack (spilled registers) of a thread, and bytes of shared memory of a block."""
    sizes = {"N": 12, "D": D, "E": E, "D2": relations._power(D), "E2": relations._power(E), "BLOCK": relations.BLOCK}
    constants = {**sizes, **options}
    types = {"T": "i32", "blocks": "i32", "edges": "*i32", "scale_s": "fp32", "scale_t": "fp32"}
    types |= dict.fromkeys(("q_s", "k_s", "q_t", "k_t"), f"*{dtype}")
    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in kernel.arg_names}
    # as torch allocates them; with that the compiler fetches ahead, which is what takes most shared memory
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if signature[name].startswith("*")}
    made = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": relations.WARPS},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return {"registers": int(registers), "stack": int(stack), "shared": made.metadata.shared}


if __name__ == "__main__":
    cases = [(architecture, "bf16", LARGEST, LARGEST) for architecture in (80, 86, 89, 90, 100, 120)]
    cases += [(90, "bf16", 32, 64), (90, "fp16", 32, 64), (80, "fp16", 32, 64)]  # the paper's
    kernels = {
        "forward": (relations._forward, {}),
        "by queries": (relations._gradient, {"OF_KEYS": False}),
        "by keys": (relations._gradient, {"OF_KEYS": True}),
    }
    found = {
        f"sm_{case[0]} {case[1:]} {name}": compiled(case[0], kernel, *case[1:], **options)
        for case in cases
        for name, (kernel, options) in kernels.items()
    }
    print(json.dumps(found))
