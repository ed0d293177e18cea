"""The distillation step against its peers: `python -m benchmarks.step [--size small|base] [--repetitions N]`.

First a gate: every contender's loss and gradients against an fp64 reference; no ratio is printed if one fails. Then all
contenders in turn in one process, on one thread: ratios of medians of CPU seconds, with minimum and maximum.
"""

from __future__ import annotations

import argparse
import copy
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from benchmarks import measure, peers
from etd_ds.bert.encoder import Packed
from etd_ds.distill.inputs import totals
from etd_ds.distill.module import Distiller, Guide
from etd_ds.losses import OBJECTIVES, Segments

LOSS_GATE, GRADIENT_GATE = 1e-5, 1e-4
BASELINE = "tinybert, no_grad"
STOCK = "Hugging Face eager"
OURS = "etd-ds"


class Size(NamedTuple):
    """(layers, hidden) of teacher and student; both have 12 heads."""

    teacher: tuple[int, int]
    student: tuple[int, int]
    vocab: int


SIZES = {"small": Size((6, 384), (3, 192), 8000), "base": Size((12, 768), (6, 384), 30522)}


class Shape(NamedTuple):
    """B sequences of up to S tokens, filled to `fill` on average."""

    B: int
    S: int
    fill: float


SHAPES = {"n 128": Shape(16, 128, 1.0), "n 512": Shape(4, 512, 1.0), "n 512, half padded": Shape(4, 512, 0.5)}


@dataclass
class Case:
    """One batch, one teacher, and students to train on it."""

    teacher: BertModel
    distiller: Distiller
    padded: peers.Padded
    packed: Packed

    def clear(self) -> None:
        """Forget all gradients."""
        self.teacher.zero_grad()
        self.distiller.zero_grad()

    def gradients(self) -> list[Tensor]:
        """Of all that learns."""
        return [p.grad.clone() for p in self.distiller.parameters() if p.grad is not None]


def make_case(size: Size, shape: Shape, objective: str, seed: int = 0) -> Case:
    """Weights and tokens drawn from a seed; scores are of a trained BERT's order, so that losses are not degenerate."""
    torch.manual_seed(seed)
    teacher, student = _bert(size.vocab, *size.teacher), _bert(size.vocab, *size.student)
    compared = OBJECTIVES[objective](size.student[0], size.teacher[0])
    distiller = Distiller(student, compared, teacher_hidden=size.teacher[1], dropout=0.0, seed=seed)
    ids_BS = torch.randint(1, size.vocab, (shape.B, shape.S))
    types_BS = (torch.arange(shape.S) >= shape.S // 2).long().expand_as(ids_BS)
    spread = torch.linspace(2 * shape.fill - 1, 1.0, shape.B) if shape.fill < 1 else torch.ones(shape.B)
    lengths_B = (spread * shape.S).round().long().clamp(min=shape.S // 8)
    mask_BS = torch.arange(shape.S) < lengths_B[:, None]
    positions_BS = torch.arange(shape.S).expand_as(ids_BS)
    segments = Segments.packed(lengths_B.tolist())
    packed = Packed(ids_BS[mask_BS], positions_BS[mask_BS], types_BS[mask_BS], segments)
    return Case(teacher, distiller, peers.Padded(ids_BS * mask_BS, types_BS, mask_BS.long()), packed)


def _bert(vocab: int, layers: int, hidden: int) -> BertModel:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": 4 * hidden}
    config = BertConfig(vocab_size=vocab, num_attention_heads=12, **sizes)
    config._attn_implementation = "sdpa"
    bert = BertModel(config, add_pooling_layer=False).eval()
    for layer in bert.encoder.layer:
        for linear in (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value):
            nn.init.normal_(linear.weight, std=0.08 * (384 / hidden) ** 0.5)
    return bert


def ours(case: Case, students: list[Distiller] | None = None) -> Tensor:
    """Our step: one teacher forward, then each student's loss and gradients."""
    learning = students or [case.distiller]
    taps = Guide(case.teacher, learning[0].objective)(case.packed)
    means = totals([case.packed])
    for student in learning:
        loss, _ = student(case.packed, taps, means)
        loss.backward()
    return loss.detach()


def contenders(case: Case, objective: str) -> dict[str, Callable[[], Tensor]]:
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

    def mine() -> Tensor:
        case.clear()
        return ours(case)

    return {
        "tinybert, as published": lambda: published(teacher_graph=True),
        BASELINE: lambda: published(teacher_graph=False),
        STOCK: stock,
        OURS: mine,
    }


def gate(case: Case, objective: str, steps: dict[str, Callable[[], Tensor]]) -> list[str]:
    """Compare every contender with the fp64 definition on stock modules; the complaints."""
    exact = copy.deepcopy(case)
    exact.teacher.double()
    exact.distiller.double()
    wanted = contenders(exact, objective)[STOCK]().item()
    gradients = exact.gradients()
    complaints = []
    for name, step in steps.items():
        loss = step().item()
        error = abs(loss - wanted) / abs(wanted)
        difference = sum((a.double() - b).square().sum() for a, b in zip(case.gradients(), gradients, strict=True))
        gradient_error = float((difference / sum(b.square().sum() for b in gradients)).sqrt())
        if error > LOSS_GATE or gradient_error > GRADIENT_GATE:
            complaints.append(f"{name}: loss off by {error:.1e}, gradients by {gradient_error:.1e}")
    return complaints


def report(title: str, samples: dict[str, measure.Sample], baseline: str, tokens: int) -> None:
    """One table."""
    print(f"\n{title}\n{'':26}{'CPU s':>8}{'min':>8}{'max':>8}{'wall s':>8}{'ratio':>8}{'peak MB':>9}{'tokens/s':>10}")
    for name, sample in samples.items():
        ratio = samples[baseline].median / sample.median
        print(
            f"{name:26}{sample.median:8.3f}{min(sample.cpu):8.3f}{max(sample.cpu):8.3f}{min(sample.wall):8.3f}"
            f"{ratio:7.2f}×{sample.peak_bytes / 1e6:9.0f}{tokens / sample.median:10.0f}"
        )


def several_students(size: Size, repetitions: int) -> None:
    """CPU seconds per student when K of them share every teacher forward."""
    case = make_case(size, SHAPES["n 128"], "last_layer")
    crowd = [copy.deepcopy(case.distiller) for _ in range(8)]

    def step(K: int) -> Callable[[], Tensor]:
        return lambda: ours(case, crowd[:K])

    samples = measure.interleaved({str(K): step(K) for K in (1, 2, 4, 8)}, repetitions)
    print("\nStudents that share a teacher, n 128: CPU s per student and step")
    for K, sample in samples.items():
        each = sample.median / int(K)
        print(f"K = {K}: {each:.3f} ({samples['1'].median / each:.2f}× cheaper)")


def main() -> int:
    """0, or 1 when the gate found a wrong result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size = SIZES[args.size]
    print(
        f"teacher {size.teacher[0]}L-{size.teacher[1]}, student {size.student[0]}L-{size.student[1]}, fp32, "
        f"{args.threads} thread(s), {platform.processor() or platform.machine()}, torch {torch.__version__}; "
        f"medians of {args.repetitions}; ratios against '{BASELINE}'"
    )
    failed = False
    for objective in ("last_layer", "minilm"):
        for shape_name, shape in SHAPES.items():
            case = make_case(size, shape, objective)
            steps = contenders(case, objective)
            title = f"{objective}, {shape_name}"
            if complaints := gate(case, objective, steps):
                failed = True
                print(f"\n{title}: GATE FAILED, not timed\n  " + "\n  ".join(complaints))
                continue
            tokens = int(case.padded.mask_BS.sum())
            report(title, measure.interleaved(steps, args.repetitions), BASELINE, tokens)
    several_students(size, args.repetitions)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
