"""Importance scores of a teacher: from the cache, or computed once, interruptible, and kept for every student shape."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etd_ds import data
from etd_ds.bert import checkpoint, head_fit, scoring
from etd_ds.contract import spec
from etd_ds.data import masking, tokenize
from etd_ds.extract import importance
from etd_ds.stages import cache as store
from etd_ds.stages import progress, sentences

# Part of every key: raise it when the same inputs would give other scores.
VERSION = 1
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
    lines = data.sentences(job.corpus, job.importance_sentences)
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
    own_head = "mlm" in weights.parts
    head = None if own_head else job.mlm_head_steps
    folder = cache / "scores" / store.key(basis | {"reduction": job.importance_reduction, "mlm_head_steps": head})
    with store.lock(folder):
        entry = store.load(folder)
        cached = entry is not None
        if entry is None:
            bert = checkpoint.build_encoder(config, weights.state, dtype=torch.float32)
            torch.nn.Module.to(bert.requires_grad_(False), _device())
            text = sentences.read(lines, tokenizer, teacher.shape.vocab)
            task = _Task(job, teacher, bert, text, report or progress.silent)
            if own_head:
                heads, about = _own_heads(weights, bert.device), {"fitted": False}
            else:
                heads, about = task.fitted_head(cache / "heads" / store.key(basis | {"mlm_head_steps": head}))
            info = {
                "corpus": job.corpus,
                "corpus_sha256": digest,
                "sentences": len(lines),
                "reduction": job.importance_reduction,
                "loss": "MLM + NSP" if "nsp" in weights.parts else "MLM",
                "mlm_head": about,
            }
            entry = task.scored(folder, heads, info)
    scores = importance.Scores(**entry.tensors)
    return Found(scores, cached, digest, entry.info | {"sha256": entry.sha256})


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
        """An MLM head for a teacher without one, from the cache or fitted now."""
        steps = self.job.mlm_head_steps
        with store.lock(folder):
            entry = store.load(folder)
            if entry is None:
                batches = sentences.fit_batches(self.text, seed=self.job.seed, positions=self.teacher.shape.positions)
                fitted = head_fit.fit(
                    self.bert,
                    (batch.to(self.bert.device) for batch in batches),
                    steps=steps,
                    frequency_V=self.text.frequency(),
                    generator=masking.generator(self.job.seed, 4),
                    report=lambda done: self.report("fit MLM head", done, steps),
                )
                tail = fitted.losses[-10:]
                about = {"fitted": True, "steps": steps, "loss": [fitted.losses[0], sum(tail) / len(tail)]}
                entry = store.store(folder, {name: t.cpu() for name, t in fitted.state.items()}, about)
        return {name: t.to(self.bert.device) for name, t in entry.tensors.items()}, entry.info

    def scored(self, folder: Path, heads: Mapping[str, Tensor], info: dict[str, Any]) -> store.Entry:
        """Score every sentence; what is done is saved from time to time, and taken up again after an interruption."""
        pairs = "nsp" in info["loss"].lower()
        batches = sentences.batches(self.text, positions=self.teacher.shape.positions, seed=self.job.seed, pairs=pairs)
        masked = sum(int((batch.labels_BS != scoring.IGNORED).sum()) for batch in batches)
        sequences = sum(len(batch.ids_BS) for batch in batches)
        unfinished = folder.with_name(folder.name + ".partial")
        totals = importance.zeros(self.teacher.shape, self.bert.device)
        done, loss, saved_at = 0, 0.0, time.monotonic()
        if (earlier := store.load(unfinished)) is not None:
            totals = importance.merged([totals, importance.Scores(**earlier.tensors)])
            done, loss = earlier.info["batches"], earlier.info["loss"]
        for batch in batches[done:]:
            # The loss of pre-training is a mean over masked tokens plus a mean over pairs; both counts are constants
            # of the whole pass, so the sum below is that loss times `masked`, whatever the batches.
            loss += scoring.accumulate(
                totals,
                self.bert,
                heads,
                batch.to(self.bert.device),
                nsp_weight=masked / sequences,
                reduction=self.job.importance_reduction,
            )
            done += 1
            self.report("score neurons", done, len(batches))
            if time.monotonic() - saved_at > SAVE_EVERY_SECONDS:
                store.store(unfinished, _on_cpu(totals), {"batches": done, "loss": loss})
                saved_at = time.monotonic()
        entry = store.store(folder, _on_cpu(totals), info | {"loss_per_masked_token": loss / max(1, masked)})
        shutil.rmtree(unfinished, ignore_errors=True)
        return entry


def _on_cpu(scores: importance.Scores) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in scores.as_dict().items()}
