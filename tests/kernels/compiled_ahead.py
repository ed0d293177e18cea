"""Compiles the Triton kernels for a Hopper GPU, on a machine without one: prints what each takes, as JSON."""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from etd_ds.kernels import relations

HOPPER = GPUTarget("cuda", 90, 32)
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compiled(kernel, dtype: str, D: int, E: int, **options) -> dict[str, int]:
    """Registers and bytes of stack (spilled registers) of a thread, and of shared memory."""
    sizes = {"N": 12, "D": D, "E": E, "D2": relations._power(D), "E2": relations._power(E), "BLOCK": relations.BLOCK}
    constants = {**sizes, **options}
    types = {"T": "i32", "blocks": "i32", "edges": "*i32", "scale_s": "fp32", "scale_t": "fp32"}
    types |= dict.fromkeys(("q_s", "k_s", "q_t", "k_t"), f"*{dtype}")
    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in kernel.arg_names}
    options = {"num_warps": relations.WARPS}
    made = triton.compile(ASTSource(kernel, signature, constexprs=constants), target=HOPPER, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return {"registers": int(registers), "stack": int(stack), "shared": made.metadata.shared}


if __name__ == "__main__":
    found = {}
    for D, E in ((32, 64), (64, 128)):
        found[f"forward {D} {E}"] = compiled(relations._forward, "bf16", D, E)
        for of_keys in (False, True):
            found[f"gradient {D} {E} {of_keys}"] = compiled(relations._gradient, "bf16", D, E, OF_KEYS=of_keys)
    print(json.dumps(found))
