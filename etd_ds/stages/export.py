"""The export stage: the last checkpoint becomes the student's folder, and then the run's result."""

from __future__ import annotations

from etd_ds.bert import checkpoint as bert_checkpoint
from etd_ds.contract import errors, events, rundir, spec
from etd_ds.distill.module import encoder_state
from etd_ds.engine import checkpoint
from etd_ds.engine.checkpoint import Found, Progress
from etd_ds.stages.attempt import Attempt


def export(run: rundir.RunDir, found: Found, attempt: Attempt) -> rundir.Result:
    """Write `run.student` from the final checkpoint, then `run.result`, whose presence means success."""
    attempt.say(events.Stage(stage="export", state="start"))
    progress = found.progress
    with rundir.publishing(run.student) as aside:
        bert_checkpoint.save_student(aside, init=run.init, encoder=encoder_state(found.tensors()))
        card = aside / "README.md"
        card.write_text(card.read_text(encoding="utf-8") + _training(run, progress), encoding="utf-8")
        attempt.guard()
    result = rundir.Result(
        steps=progress.step,
        tokens=progress.tokens,
        seconds=round(progress.seconds, 3),
        validation_before=progress.validation_before,
        validation_after=progress.validation_after,
        files={path.name: rundir.digest(path) for path in sorted(run.student.iterdir())},
    )
    attempt.guard()
    rundir.publish_json(run.result, result)
    attempt.say(events.Stage(stage="export", state="done"))
    return result


def revision(run: rundir.RunDir, step: int) -> rundir.Revision:
    """Make the kept checkpoint of a step a student under `run.revisions`; once made, it stays."""
    name = f"step-{step}"
    manifest = run.revisions / f"{name}.json"
    if manifest.exists():
        return rundir.read_revision(manifest)
    try:
        found = checkpoint.open_whole(run.checkpoints, step)
        checkpoint.verified(found.path)
        encoder = encoder_state(found.tensors())
    except FileNotFoundError:
        raise errors.RunFolderError(
            f"{name}: no such checkpoint is kept any more", field="revision", got=name
        ) from None
    except ValueError as error:
        raise errors.RunFolderError(
            f"{name}: the checkpoint is damaged ({error}); ask for another step", field="revision", got=name
        ) from None
    with rundir.publishing(run.revisions / name) as aside:
        bert_checkpoint.save_student(aside, init=run.init, encoder=encoder)
        card = aside / "README.md"
        card.write_text(card.read_text(encoding="utf-8") + _training(run, found.progress), encoding="utf-8")
    files = {path.name: rundir.digest(path) for path in sorted((run.revisions / name).iterdir())}
    made = rundir.Revision(step=found.progress.step, files=files)
    rundir.publish_json(manifest, made)
    return made


def _training(run: rundir.RunDir, progress: Progress) -> str:
    """What the model card says of the distillation."""
    job = run.read_job()
    lines = [
        "\n## Distillation\n",
        f"Objective `{job.objective}`, {progress.step:,} steps of {job.batch_size} sequences of up to "
        f"{job.seq_length} tokens ({progress.tokens:,} tokens), corpus `{spec.public_name(job.corpus)}`.\n",
    ]
    before, after = progress.validation_before, progress.validation_after
    if before and after:
        lines += ["\n| held-out loss | before | after |\n|---|---|---|\n"]
        lines += [f"| {name} | {before[name]:.4f} | {after[name]:.4f} |\n" for name in after]
    return "".join(lines)
