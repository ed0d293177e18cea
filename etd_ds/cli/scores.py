"""`etd-ds scores`: compute a teacher's importance scores ahead of time, so that every extraction finds them.

Several GPUs share the work under `torchrun --nproc-per-node N -m etd_ds.cli scores …`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from etd_ds.bert import checkpoint
from etd_ds.contract import flags, launch, spec
from etd_ds.stages import progress, ranks, scores

_DECIDES = {"teacher", "corpus", "seed", "importance_sentences", "importance_reduction", "mlm_head_steps"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Flags: the cache, and those fields of the job spec that decide the scores."""
    parser.add_argument(
        "--cache",
        type=Path,
        default=launch.default_cache(),
        metavar="DIR",
        help="of teachers, text and scores (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    flags.add(parser, leave_out=spec.JobSpec.model_fields.keys() - _DECIDES)


def run(args: argparse.Namespace) -> int:
    """Find or compute, and print where the scores come from as JSON."""
    # Scores do not depend on the student, so the teacher's own shape stands in for it.
    reference = getattr(args, "teacher", spec.JobSpec.model_fields["teacher"].default)
    teacher = checkpoint.resolve(reference, args.cache)
    job = flags.read(args, layers=teacher.shape.layers, hidden=teacher.shape.hidden, ffn=teacher.shape.ffn)
    weights = checkpoint.read_weights(teacher.folder)
    with ranks.joined():
        first = ranks.rank() == 0
        report = progress.bar(quiet=args.quiet or not first)
        found = scores.find(job, teacher, weights, cache=args.cache, report=report)
        if first:
            print(json.dumps({"cached": found.cached, "teacher_sha256": teacher.sha256} | found.provenance, indent=2))
    return 0
