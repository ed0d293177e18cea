"""The extraction stage: a job spec in, the initial student and the plan of its run out [ETD §3.1, §3.2]."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from etd_ds import flops
from etd_ds.bert import checkpoint
from etd_ds.contract import events, rundir, shape, spec
from etd_ds.data import tokenize
from etd_ds.extract import apply
from etd_ds.extract import plan as plans
from etd_ds.stages import calibrate, card, progress, scores


def check(job: spec.JobSpec, cache: Path) -> tuple[shape.EncoderShape, shape.EncoderShape]:
    """(teacher, student) shapes; every error of a bad request, without reading weights. Raises `EtdError`."""
    teacher = checkpoint.shape_of(job.teacher, cache)
    return teacher, shape.student(job, teacher)


def extract(run: rundir.RunDir, *, cache: Path, report: progress.Report | None = None) -> rundir.Plan:
    """Fill `run.init`, then `run.plan`, from `run.job`. Done already if the plan is there. Raises `EtdError`."""
    if run.plan.exists():
        events.append(run.events, events.Stage(stage="extract", state="skipped"))
        return run.read_plan()
    job = run.read_job()
    check(job, cache)
    events.append(run.events, events.Stage(stage="extract", state="start"))
    made = cut(job, run.init, cache=cache, report=report)
    rundir.publish_json(run.plan, made)
    events.append(run.events, events.Stage(stage="extract", state="done", detail=f"{made.seconds:.1f} s"))
    return made


def cut(job: spec.JobSpec, folder: Path, *, cache: Path, report: progress.Report | None = None) -> rundir.Plan:
    """Write the initial student of a spec into `folder`, whole or not at all, and say what was decided."""
    started = time.monotonic()
    teacher = checkpoint.resolve(job.teacher, cache)
    student = shape.student(job, teacher.shape)
    weights = checkpoint.read_weights(teacher.folder)
    found: scores.Found | None = None
    fitted: calibrate.Refitted | None = None
    match job.mode:
        case "none":
            state = _random(job, student, weights, teacher)
            kept: dict[str, Any] = {"hidden": [], "layers": [], "note": "random initialisation: nothing was extracted"}
            teacher_layers: tuple[int, ...] = ()
        case "rand" | "impt":
            if job.mode == "impt":
                found = scores.find(job, teacher, weights, cache=cache, report=report)

            def cut_at(job: spec.JobSpec) -> plans.Cut:
                if found is None:
                    return plans.drawn(job, teacher.shape, student)
                return plans.scored(job, teacher.shape, student, found.scores)

            chosen, kept, fitted = _chosen(job, teacher, student, weights, cut_at, report or progress.silent)
            state = fitted.state if fitted else apply.student(weights.state, chosen, weights.parts)
            teacher_layers = tuple(layer.teacher_layer for layer in chosen.layers)
    made = rundir.Plan(
        teacher=teacher.shape,
        student=student,
        teacher_sha256=teacher.sha256,
        teacher_reference=teacher.reference,
        corpus_sha256=found.corpus_sha256 if found else None,
        teacher_layers=teacher_layers,
        teacher_parameters=flops.count(weights.state),
        student_parameters=flops.count(state),
        compression=round(flops.count(weights.state) / flops.count(state), 4),
        seconds=round(time.monotonic() - started, 3),
        scores_cached=found.cached if found else None,
    )
    manifest = kept | _provenance(job, teacher, weights, found)
    with rundir.publishing(folder) as aside:
        checkpoint.write(
            aside,
            teacher=teacher.folder,
            tokens=tokenize.open_tokenizer(teacher.folder),
            student=student,
            weights=checkpoint.Weights(state, weights.parts, ()),
            manifest=manifest,
            card=card.text(job, made, spec.public_name(teacher.reference)),
        )
        if fitted is not None and fitted.projection is not None:
            calibrate.write(fitted.projection, aside / rundir.PROJECTION)
    return made.model_copy(update={"seconds": round(time.monotonic() - started, 3)})


def _chosen(
    job: spec.JobSpec,
    teacher: checkpoint.Teacher,
    student: shape.EncoderShape,
    weights: checkpoint.Weights,
    cut: Callable[[spec.JobSpec], plans.Cut],
    report: progress.Report,
) -> tuple[plans.Cut, dict[str, Any], calibrate.Refitted | None]:
    """What is kept, its manifest, and the refit student where the spec asks for one."""
    if job.refit == "none" and job.layer_selection != "measured":
        chosen = cut(job)
        return chosen, chosen.manifest(), None
    calibration = calibrate.Calibration(job, teacher, student, weights)
    measured: dict[str, Any] = {}
    if job.layer_selection == "measured":
        start = shape.teacher_layers(job.model_copy(update={"layer_selection": "uniform"}), teacher.shape)
        best, measured = calibration.layers(
            lambda layers: cut(job.model_copy(update={"layer_selection": layers})), start, report
        )
        job = job.model_copy(update={"layer_selection": best})
    chosen = cut(job)
    if job.refit == "none":
        return chosen, chosen.manifest() | measured, None
    report("refit", 0, 1)
    fitted = calibration.refit(chosen)
    report("refit", 1, 1)
    return chosen, chosen.manifest() | measured | fitted.manifest, fitted


def _random(
    job: spec.JobSpec, student: shape.EncoderShape, weights: checkpoint.Weights, teacher: checkpoint.Teacher
) -> dict[str, torch.Tensor]:
    std = checkpoint.read_config(teacher.folder).get("initializer_range", 0.02)
    # a stream of its own: the projection of the loss is drawn from the bare seed
    digest = hashlib.sha256(f"{job.seed}/random initialisation".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return apply.random(student, weights.parts, std=std, generator=generator)


def _provenance(
    job: spec.JobSpec, teacher: checkpoint.Teacher, weights: checkpoint.Weights, found: scores.Found | None
) -> dict[str, Any]:
    """What the manifest says beside the kept indices: from what, by which rule, under which hashes."""
    return {
        "mode": job.mode,
        "seed": job.seed,
        "layer_selection": job.layer_selection,
        "reverse": list(job.reverse),
        "hidden_consistency": job.hidden_consistency,
        "teacher": {
            "reference": spec.public_name(teacher.reference),
            "shape": teacher.shape.model_dump(),
            "sha256": teacher.sha256,
            "parts_left_out": list(weights.ignored),
        },
        "scores": found.provenance if found else None,
    }
