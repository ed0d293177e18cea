"""The distillation step against its peers.

First a gate: every contender's loss and gradients against an fp64 reference; no ratio is printed if one fails. Then all
contenders in turn in one process: medians of CPU seconds on one thread (with a GPU: of wall seconds), their minimum and
maximum, ratios, peak memory, and the share of what plain matrix products reach in the same run. All that is exact comes
first, bf16 in tables of its own, with its errors; last, what each of K students costs that share a teacher. Who does
not fit into a GPU's memory has no row.
"""

from __future__ import annotations

import argparse
import copy
import math
import platform
import statistics
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import measure, peers
from benchmarks.cases import SHAPES, SIZES, Case, Size, make_case
from etd_ds.distill.inputs import totals
from etd_ds.distill.module import Distiller
from etd_ds.kernels.linear import linear

LOSS_GATE, GRADIENT_GATE = 1e-5, 1e-4
BASELINE = "tinybert, no_grad"
STOCK = "Hugging Face eager"
OURS = "etd-ds"
# With a GPU so many times more sequences are timed than the gate compares.
GPU_BATCHES = 8

Steps = dict[str, Callable[[], Tensor]]


class Truth(NamedTuple):
    """Loss and gradients in fp64."""

    loss: float
    gradients: list[Tensor]


def ours(case: Case, students: Iterable[Distiller], *, compiled: bool = False) -> Tensor:
    """Our step: one teacher forward, then each student's loss and gradients."""
    case.guide.compiled = compiled
    taps = case.guide(case.packed)
    means = totals([case.packed])
    for student in students:
        student.compiled = compiled
        student.zero_grad()
        loss, _ = student(case.packed, taps, means)
        loss.backward()
    return loss.detach()


def contenders(case: Case, objective: str) -> Steps:
    """Name -> a step that leaves gradients behind."""
    W = case.distiller.projection or nn.Linear(1, 1)
    bert = case.distiller.bert

    def published(*, teacher_graph: bool) -> Tensor:
        case.clear()
        case.teacher.requires_grad_(teacher_graph)
        return peers.published_step(objective, case.teacher, bert, W, case.padded, teacher_graph=teacher_graph)

    def stock() -> Tensor:
        case.clear()
        return peers.stock_step(objective, case.teacher, bert, W, case.padded)

    return {
        "tinybert, as published": lambda: published(teacher_graph=True),
        BASELINE: lambda: published(teacher_graph=False),
        STOCK: stock,
        OURS: lambda: ours(case, [case.distiller]),
    }


def truth(case: Case, objective: str) -> Truth:
    """The step by the definitions on stock modules, in fp64."""
    exact = case.to(torch.float64)
    return Truth(contenders(exact, objective)[STOCK]().item(), exact.gradients())


def errors(case: Case, step: Callable[[], Tensor], wanted: Truth) -> tuple[float, float]:
    """Relative errors of loss and gradients."""
    loss = step().item()
    pairs = list(zip(case.gradients(), wanted.gradients, strict=True))
    difference = sum((a.double() - b).square().sum() for a, b in pairs)
    gradient = float((difference / sum(b.square().sum() for _, b in pairs)) ** 0.5)
    return abs(loss - wanted.loss) / abs(wanted.loss), gradient


def gate(case: Case, steps: Steps, wanted: Truth) -> list[str]:
    """The complaints about contenders whose results are not the reference's."""
    complaints = []
    for name, step in steps.items():
        loss, gradient = errors(case, step, wanted)
        if loss > LOSS_GATE or gradient > GRADIENT_GATE:
            complaints.append(f"{name}: loss off by {loss:.1e}, gradients by {gradient:.1e}")
    return complaints


def ceiling(dtype: torch.dtype, *, gpu: bool) -> float:
    """FLOP/s that a plain matrix product of this precision reaches here."""
    M, K, N = (8192, 8192, 8192) if gpu else (2048, 1024, 1024)
    with torch.no_grad():
        module = nn.Linear(K, N, bias=True).to("cuda" if gpu else "cpu", dtype)
        x = torch.randn(M, K, device=module.weight.device, dtype=dtype)
        sample = measure.interleaved({"product": lambda: linear(module, x)}, 9, gpu=gpu)["product"]
    return 2 * M * K * N / min(sample.seconds)


def report(title: str, case: Case, samples: dict[str, measure.Sample], most: float, notes: dict[str, str]) -> None:
    """One table; ratios are against the first row that is a baseline."""
    unit = "wall s" if next(iter(samples.values())).gpu else "CPU s"
    baseline = next((sample.median for name, sample in samples.items() if name.startswith(BASELINE)), math.nan)
    print(f"\n{title}\n{'':26}{unit:>8}{'min':>8}{'max':>8}{'ratio':>8}{'peak MB':>9}{'tokens/s':>10}{'of matmul':>10}")
    for name, sample in samples.items():
        share = case.matmul_flops() / sample.median / most
        print(
            f"{name:26}{sample.median:8.4f}{min(sample.seconds):8.4f}{max(sample.seconds):8.4f}"
            f"{baseline / sample.median:7.2f}×{sample.peak_bytes / 1e6:9.0f}{case.tokens / sample.median:10.0f}"
            f"{share:10.0%}{notes.get(name, '')}"
        )


def compare(
    size: Size, objective: str, name: str, repetitions: int, *, gpu: bool, most: dict[torch.dtype, float]
) -> bool:
    """Both tables of one shape, exact and bf16; whether the gate let them pass."""
    case = make_case(size, SHAPES[name], objective).to(torch.device("cuda" if gpu else "cpu"))
    steps, wanted = contenders(case, objective), truth(case, objective)
    title = f"{objective}, {name}"
    if complaints := gate(case, steps, wanted):
        print(f"\n{title}: GATE FAILED, not timed\n  " + "\n  ".join(complaints))
        return False
    notes = {}
    half = case.to(torch.bfloat16)
    for step_name, step in in_bf16(half, objective, gpu=gpu).items():
        loss, gradient = errors(half, step, wanted)
        notes[step_name] = f"   loss off by {loss:.0e}, gradients by {gradient:.0e}"
    if gpu:
        shape = SHAPES[name]
        case = make_case(size, shape._replace(B=GPU_BATCHES * shape.B), objective).to(torch.device("cuda"))
        steps, half = contenders(case, objective), case.to(torch.bfloat16)
    report(f"{title}, fp32", case, measure.interleaved(steps, repetitions, gpu=gpu), most[torch.float32], {})
    samples = measure.interleaved(in_bf16(half, objective, gpu=gpu), repetitions, gpu=gpu)
    report(f"{title}, bf16 (not exact)", half, samples, most[torch.bfloat16], notes)
    return True


def in_bf16(half: Case, objective: str, *, gpu: bool) -> Steps:
    """The baseline and our step on weights in bf16."""
    steps = contenders(half, objective)
    found = {f"{name}, bf16": steps[name] for name in (BASELINE, OURS)}
    if gpu:
        found[f"{OURS}, bf16, compiled"] = lambda: ours(half, [half.distiller], compiled=True)
    return found


def several_students(size: Size, repetitions: int, *, gpu: bool) -> None:
    """Seconds per student when K of them share every teacher forward; in bf16 on a GPU, else in fp32."""
    shape = SHAPES["n 128"]
    case = make_case(size, shape._replace(B=shape.B * (GPU_BATCHES if gpu else 1)), "last_layer")
    if gpu:
        case = case.to(torch.device("cuda")).to(torch.bfloat16)
    crowd = [copy.deepcopy(case.distiller) for _ in range(8)]

    def step(K: int) -> Callable[[], Tensor]:
        return lambda: ours(case, crowd[:K])

    samples = measure.interleaved({str(K): step(K) for K in (1, 2, 4, 8)}, repetitions, gpu=gpu)
    print(f"\nStudents that share a teacher, n 128, {'bf16' if gpu else 'fp32'}: seconds per student and step")
    for K, sample in samples.items():
        each = sample.median / int(K)
        print(f"K = {K}: {each:.4f} ({statistics.median(samples['1'].seconds) / each:.2f}× cheaper)")


def main() -> int:
    """0, or 1 when the gate found a wrong result."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, help="of the models; default: small on a CPU, base on a GPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--objective", choices=("last_layer", "minilm"), nargs="+", default=("last_layer", "minilm"))
    parser.add_argument("--shape", choices=SHAPES, nargs="+", default=tuple(SHAPES))
    parser.add_argument("--repetitions", type=int, default=3, help="of which medians are taken")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    args = parser.parse_args()
    gpu = args.device == "cuda"
    if gpu and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device")
    torch.set_num_threads(args.threads)
    size = SIZES[args.size or ("base" if gpu else "small")]
    most = {dtype: ceiling(dtype, gpu=gpu) for dtype in (torch.float32, torch.bfloat16)}
    where = torch.cuda.get_device_name() if gpu else f"{platform.machine()}, {args.threads} thread(s)"
    print(
        f"teacher {size.teacher[0]}L-{size.teacher[1]}, student {size.student[0]}L-{size.student[1]}; {where}, "
        f"torch {torch.__version__}; medians of {args.repetitions}; ratios against '{BASELINE}'; matrix products reach "
        + ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {str(dtype).removeprefix('torch.')}" for dtype, rate in most.items())
    )
    cases = [(objective, shape) for objective in args.objective for shape in args.shape]
    passed = [compare(size, *case, args.repetitions, gpu=gpu, most=most) for case in cases]
    several_students(size, args.repetitions, gpu=gpu)
    return int(not all(passed))


if __name__ == "__main__":
    raise SystemExit(main())
