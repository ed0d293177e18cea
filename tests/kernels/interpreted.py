"""The Triton kernel in its interpreter on this CPU, against the definition in fp64: prints the errors, as JSON."""

import json

import torch

from etd_ds.kernels import relations
from etd_ds.losses import definition


def errors(dtype, lengths, D, E, near: float | None) -> dict[str, float]:
    """Relative errors of the loss and of both gradients; with `near` the student is the teacher and so much noise."""
    torch.manual_seed(sum(lengths))
    T, N = sum(lengths), 2
    q_t, k_t = (torch.randn(T, N, E).to(dtype) for _ in range(2))
    if near is None:
        q_s, k_s = (torch.randn(T, N, D).to(dtype) for _ in range(2))
    else:
        q_s, k_s = ((x + near * torch.randn(T, N, E)).to(dtype) for x in (q_t, k_t))
    got = relations.relation_kl(q_s, k_s, q_t, k_t, lengths, block=16)
    q, k = q_s.double().requires_grad_(), k_s.double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for parts in zip(*(x.split(lengths) for x in (q, k, q_t.double(), k_t.double())), strict=True):
        S = len(parts[0])
        mean = definition.relation_kl(*(x[None] for x in parts), torch.ones(1, S, dtype=torch.float64))
        total = total + mean * N * S
    wanted = (total.detach(), *torch.autograd.grad(total, (q, k)))
    return {
        name: float((a.double() - b).norm() / b.norm().clamp(min=1e-300))
        for name, a, b in zip(("loss", "dq", "dk"), got, wanted, strict=True)
    }


if __name__ == "__main__":
    cases = {
        "fp32": errors(torch.float32, (5, 37, 16, 2), 8, 24, None),
        "fp16": errors(torch.float16, (5, 37, 16, 2), 16, 32, None),
        "fp16, nearly learned": errors(torch.float16, (40, 20), 32, 32, 0.01),
    }
    print(json.dumps(cases))
