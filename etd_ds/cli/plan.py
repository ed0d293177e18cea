"""`etd-ds plan`: what a student would look like and cost, before anything is downloaded or computed."""

from __future__ import annotations

import argparse
from pathlib import Path

from etd_ds import flops
from etd_ds.bert import checkpoint
from etd_ds.contract import errors, flags, launch, shape, spec

SHAPES = {
    "bert-base": shape.BERT_BASE,
    "bert-large": shape.EncoderShape(layers=24, hidden=1024, heads=16, ffn=4096),
    "minilm-l6": shape.EncoderShape(layers=6, hidden=384, heads=12, ffn=1536),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Flags: a teacher by name of shape or by reference, what the hardware sustains, and the job spec's own."""
    parser.add_argument("--teacher-shape", choices=SHAPES, help="a known shape instead of --teacher")
    parser.add_argument("--sequences", type=int, help="training sequences of the corpus, to turn epochs into steps")
    parser.add_argument(
        "--tflops", type=float, default=100.0, help="TFLOP/s that one GPU sustains on this work (default: %(default)s)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=launch.default_cache(),
        metavar="DIR",
        help="of teachers, text and scores (default: %(default)s)",
    )
    flags.add(parser)


def run(args: argparse.Namespace) -> int:
    """Print the tables. Raises `ShapeError` with the allowed values for a student that cannot be."""
    job = flags.read(args)
    if not args.tflops > 0:
        raise errors.EtdError(f"tflops: wanted more than 0, got {args.tflops}", field="tflops")
    if args.sequences is not None and args.sequences < 1:
        raise errors.EtdError(f"sequences: wanted at least 1, got {args.sequences}", field="sequences")
    teacher = SHAPES[args.teacher_shape] if args.teacher_shape else checkpoint.shape_of(job.teacher, args.cache)
    student = shape.student(job, teacher)
    print(f"teacher  {teacher}")
    print(f"student  {student}, from teacher layers {_layers(job, teacher)}")
    print()
    print(table(("", "teacher", "student", "ratio"), _size_rows(teacher, student, job.seq_length)))
    print()
    rows = [
        _cost_row(name, teacher, student, job, steps, batch, tokens, args.tflops)
        for name, steps, batch, tokens in _budgets(job, args.sequences)
    ]
    header = ("distillation", "steps", "tokens", "FLOPs", "FLOPs (ELECTRA)", f"hours on {job.world_size} GPU")
    print(table(header, rows))
    print()
    print(f"Hours: FLOPs at {args.tflops:g} TFLOP/s a GPU, an assumption (--tflops); loading and validation left out.")
    return 0


def _layers(job: spec.JobSpec, teacher: shape.EncoderShape) -> str:
    if job.layer_selection == "measured":
        return "measured when the student is extracted"
    return "none" if job.mode == "none" else ", ".join(map(str, shape.teacher_layers(job, teacher)))


def _size_rows(teacher: shape.EncoderShape, student: shape.EncoderShape, tokens: int) -> list[tuple[str, ...]]:
    parameters = [flops.parameters(one) for one in (teacher, student)]
    forwards = [flops.forward(one, tokens) for one in (teacher, student)]
    return [
        ("parameters", *(f"{n:,}" for n in parameters), f"{parameters[0] / parameters[1]:.2f}"),
        ("fp32, MB", *(f"{4 * n / 1e6:.1f}" for n in parameters), ""),
        ("fp16, MB", *(f"{2 * n / 1e6:.1f}" for n in parameters), ""),
        (
            f"inference at {tokens} tokens, GFLOPs",
            *(f"{n / 1e9:.2f}" for n in forwards),
            f"{forwards[0] / forwards[1]:.2f}",
        ),
    ]


def _budgets(job: spec.JobSpec, sequences: int | None) -> list[tuple[str, int, int, int]]:
    """(name, steps, batch, tokens per sequence) of what is asked, where it is known, and of the paper."""
    asked = []
    if job.steps is not None or sequences is not None:
        asked = [("asked", job.total_steps(sequences or 0), job.batch_size, job.seq_length)]
    return [*asked, ("the paper's", flops.PAPER_STEPS, flops.PAPER_BATCH, flops.PAPER_TOKENS)]


def _cost_row(
    name: str,
    teacher: shape.EncoderShape,
    student: shape.EncoderShape,
    job: spec.JobSpec,
    steps: int,
    batch: int,
    tokens: int,
    tflops: float,
) -> tuple[str, ...]:
    exact = flops.distillation(teacher, student, tokens, steps * batch, mode="exact", dropout=job.dropout > 0)
    compat = flops.distillation(teacher, student, tokens, steps * batch, mode="electra_compat")
    hours = exact / (tflops * 1e12 * job.world_size) / 3600
    return (name, f"{steps:,}", f"{steps * batch * tokens:.3g}", f"{exact:.4g}", f"{compat:.4g}", f"{hours:.2f}")


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Columns of text: the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
