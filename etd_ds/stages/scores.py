"""Importance scores of a teacher: from the cache, or computed once, interruptible, and kept for every student shape."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etd_ds import data
from etd_ds.bert import checkpoint, head_fit, scoring
from etd_ds.contract import errors, spec
from etd_ds.contract.shape import EncoderShape
from etd_ds.data import masking, tokenize
from etd_ds.extract import importance
from etd_ds.stages import cache as store
from etd_ds.stages import progress, ranks, sentences

# Part of every key: raise it when the same inputs would give other scores.
VERSION = 2
SAVE_EVERY_SECONDS = 20.0


@dataclass(frozen=True)
class Found:
    """Scores, whether they were there already, and where they come from (for the manifest)."""

    scores: importance.Scores
    cached: bool
    corpus_sha256: str
    provenance: dict[str, Any]


def find(
    job: spec.JobSpec,
    teacher: checkpoint.Teacher,
    weights: checkpoint.Weights,
    *,
    cache: Path,
    report: progress.Report | None = None,
) -> Found:
    """The scores that a spec's extraction needs. Raises `CorpusError` when the corpus has too few sentences."""
    documents = data.opening(job.corpus, job.importance_sentences)
    lines = [line for document in documents for line in document]
    pairs = "nsp" in weights.parts
    digest = sentences.digest(lines)
    tokenizer = tokenize.open_tokenizer(teacher.folder)
    config = checkpoint.read_config(teacher.folder)
    basis = {
        "version": VERSION,
        "teacher": teacher.sha256,
        "config": checkpoint.student_config(config, teacher.shape),
        "tokenizer": tokenize.digest(tokenizer),
        "sentences": digest,
        "seed": job.seed,
    }
    fitted_steps = None if "mlm" in weights.parts else job.mlm_head_steps
    sizes = [len(document) for document in documents]
    options = {
        "reduction": job.importance_reduction,
        "mlm_head_steps": fitted_steps,
        "documents": sizes if pairs else None,
    }
    folder = cache / "scores" / store.key(basis | options)
    device = _device()
    with store.lock(folder) if ranks.rank() == 0 else nullcontext():
        entry = store.load(folder) if ranks.rank() == 0 else None
        cached = ranks.first_says(entry is not None, device)
        if not cached:
            bert = checkpoint.build_encoder(config, weights.state, dtype=torch.float32)
            torch.nn.Module.to(bert.requires_grad_(False), device)
            text = sentences.read(lines, tokenizer, teacher.shape.vocab, sizes)
            task = _Task(job, teacher, bert, text, report or progress.silent)
            if fitted_steps is None:
                heads, about = _own_heads(weights, device), {"fitted": False}
            else:
                heads, about = task.fitted_head(cache / "heads" / store.key(basis | {"mlm_head_steps": fitted_steps}))
            info = {"sentences": len(lines), "reduction": job.importance_reduction, "mlm_head": about}
            task.score(folder, heads, info, pairs=pairs)
            entry = store.load(folder)
        entry = entry or store.load(folder)
    if entry is None:
        raise OSError(f"{folder}: the scores just written cannot be read back; is the disk full or damaged?")
    provenance = (
        {"corpus": spec.public_name(job.corpus), "corpus_sha256": digest} | entry.info | {"sha256": entry.sha256}
    )
    return Found(importance.Scores(**entry.tensors), cached, digest, provenance)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _own_heads(weights: checkpoint.Weights, device: torch.device) -> dict[str, Tensor]:
    heads = {name: t for name, t in weights.state.items() if name.startswith(("cls.", "pooler."))}
    return {name: tensor.to(device, torch.float32) for name, tensor in heads.items()}


@dataclass(frozen=True)
class _Task:
    """One computation of scores."""

    job: spec.JobSpec
    teacher: checkpoint.Teacher
    bert: Any
    text: sentences.Text
    report: progress.Report

    def fitted_head(self, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """An MLM head for a teacher without one, from the cache or fitted now by the first process."""
        if ranks.rank() == 0:
            with store.lock(folder):
                if store.load(folder) is None:
                    self._fit_head(folder)
        ranks.first_says(True, self.bert.device)
        entry = store.load(folder)
        assert entry is not None
        return {name: t.to(self.bert.device) for name, t in entry.tensors.items()}, entry.info

    def _fit_head(self, folder: Path) -> None:
        steps, device = self.job.mlm_head_steps, self.bert.device
        batches = sentences.fit_batches(self.text, seed=self.job.seed, positions=self.teacher.shape.positions)
        fitted = head_fit.fit(
            self.bert,
            (batch.to(device) for batch in batches),
            steps=steps,
            frequency_V=self.text.frequency(),
            generator=masking.generator(self.job.seed, 4),
            report=lambda done: self.report("fit MLM head", done, steps),
        )
        tail = fitted.losses[-10:]
        about = {"fitted": True, "steps": steps, "loss": [fitted.losses[0], sum(tail) / len(tail)]}
        about["features"] = fitted.features
        store.store(folder, {name: t.cpu() for name, t in fitted.state.items()}, about)

    def score(self, folder: Path, heads: Mapping[str, Tensor], info: dict[str, Any], *, pairs: bool) -> None:
        """Score every sentence and store the sums; each process does its share of the batches.

        What is done is saved from time to time, and taken up again after an interruption.
        """
        device, report = self.bert.device, self.report
        batches = sentences.batches(self.text, positions=self.teacher.shape.positions, seed=self.job.seed, pairs=pairs)
        masked = sum(int((batch.labels_BS != scoring.IGNORED).sum()) for batch in batches)
        paired = sum(len(batch.nsp_B) for batch in batches if batch.nsp_B is not None)
        if not masked:
            raise errors.CorpusError(
                f"corpus: not one token of {info['sentences']} sentences was masked, so there is no loss to score by; "
                "raise importance_sentences",
                field="importance_sentences",
                got=info["sentences"],
            )
        unfinished = folder.with_name(f"{folder.name}.partial-{ranks.rank()}-of-{ranks.world()}")
        totals, loss, done = _resumed(unfinished, self.teacher.shape, device)
        own, saved_at = ranks.share(batches), time.monotonic()
        for batch in own[done:]:
            # The loss of pre-training is a mean over masked tokens plus a mean over pairs; both counts are constants
            # of the whole pass, so the sum below is that loss times `masked`, whatever the batches.
            loss += scoring.accumulate(
                totals,
                self.bert,
                heads,
                batch.to(device),
                nsp_weight=masked / max(1, paired),
                reduction=self.job.importance_reduction,
            )
            done += 1
            report("score neurons", done, len(own))
            if time.monotonic() - saved_at > SAVE_EVERY_SECONDS:
                state = _on_cpu(totals) | {"loss": loss.cpu()}
                store.store(unfinished, state, {"batches": done})
                saved_at = time.monotonic()
        ranks.total([*totals.as_dict().values(), loss])
        if not all(bool(scores.isfinite().all()) for scores in totals.as_dict().values()):
            raise errors.TeacherError("teacher: its importance scores are not finite; are its weights sound?")
        if ranks.rank() == 0:
            about = {"loss": "MLM + NSP" if pairs else "MLM", "loss_per_masked_token": loss.item() / max(1, masked)}
            store.store(folder, _on_cpu(totals), info | about)
        ranks.first_says(True, device)
        shutil.rmtree(unfinished, ignore_errors=True)


def _resumed(folder: Path, shape: EncoderShape, device: torch.device) -> tuple[importance.Scores, Tensor, int]:
    """(sums, loss, batches done) of an interrupted pass, or of one that has not begun."""
    entry = store.load(folder)
    if entry is None:
        return importance.zeros(shape, device), torch.zeros((), dtype=torch.float64, device=device), 0
    tensors = {name: tensor.to(device) for name, tensor in entry.tensors.items()}
    loss = tensors.pop("loss")
    return importance.Scores(**tensors), loss, entry.info["batches"]


def _on_cpu(scores: importance.Scores) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in scores.as_dict().items()}
