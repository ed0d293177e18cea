"""What is decided on training text after the scores: a student's refit (`JobSpec.refit`), its layers if measured."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.bert.modeling_bert import BertModel

from etd_ds.bert import checkpoint
from etd_ds.bert import refit as closed
from etd_ds.bert.encoder import Packed, encode
from etd_ds.contract import errors, rundir, spec
from etd_ds.contract.shape import EncoderShape
from etd_ds.data import held_out, tokenize
from etd_ds.distill import inputs
from etd_ds.extract import apply
from etd_ds.extract.closed_form import Affine
from etd_ds.extract.plan import Cut
from etd_ds.losses import OBJECTIVES, Objective, Segments, terms
from etd_ds.stages import progress

TOKENS = 32_768
"""How much text a student is fitted on: some ten times as many tokens as the widest map of BERT-Base has inputs."""
TRIAL_TOKENS = 8_192
"""How much a choice of layers is fitted on; its loss is measured on as much again."""

Layers = tuple[int, ...]


class Refitted(NamedTuple):
    state: dict[str, Tensor]
    projection: Affine | None
    manifest: dict[str, Any]


class Calibration:
    """A teacher and a job's training text; cuts of its students are fitted and compared on it."""

    def __init__(
        self, job: spec.JobSpec, teacher: checkpoint.Teacher, student: EncoderShape, weights: checkpoint.Weights
    ) -> None:
        """Raises `CorpusError` if the corpus has too little text."""
        self._job, self._shape, self._weights = job, student, weights
        self._config = checkpoint.read_config(teacher.folder)
        self._objective: Objective = OBJECTIVES[job.objective](student.layers, teacher.shape.layers)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._pieces = pieces(job, teacher.folder)
        self._teacher = self._built(self._config, weights.state)
        self._depth = teacher.shape.layers

    def refit(self, cut: Cut) -> Refitted:
        """The cut's student, fitted as the spec's level says."""
        packed = pack(self._pieces)
        student, projection = self._fitted(cut, packed, self._job.refit)
        about = {
            "level": self._job.refit,
            "tokens": len(packed.ids_T),
            "text_sha256": hashlib.sha256(packed.ids_T.numpy().tobytes()).hexdigest(),
        }
        state = apply.student(self._weights.state, cut, self._weights.parts)
        return Refitted(closed.fitted_state(student, state), projection, {"refit": about})

    def layers(
        self, cut: Callable[[Layers], Cut], start: Layers, report: progress.Report
    ) -> tuple[Layers, dict[str, Any]]:
        """The layers whose fitted student has the lowest loss, and for the manifest every choice's loss.

        Hill climbing from `start`: one layer is exchanged for another as long as that lowers the loss. The last one is
        the teacher's last: that is what every objective looks at.
        """
        assert start[-1] == self._depth
        best = start
        tried = {best: self.loss(cut(best))}
        while True:
            before = best
            for other in neighbours(best, self._depth):
                if other not in tried:
                    tried[other] = self.loss(cut(other))
                    report("layers tried", len(tried), len(tried) + 1)
                if tried[other] < tried[best]:
                    best = other
                    break
            if best == before:
                report("layers tried", len(tried), len(tried))
                losses = {",".join(map(str, layers)): loss for layers, loss in tried.items()}
                tokens = sum(len(half.ids_T) for half in self._halves)
                return best, {"layers_tried": {"tokens_each": tokens, "losses": losses}}

    @torch.no_grad()
    def loss(self, cut: Cut) -> float:
        """The objective's loss of the cut's student, fitted on one half of some text, on the other half."""
        first, second = self._halves
        student, projection = self._fitted(cut, first, "all")
        packed = second.to(self._device)
        totals = inputs.totals([packed])
        taps = [
            encode(bert, packed, wanted)
            for bert, wanted in ((student, self._objective.student), (self._teacher, self._objective.teacher))
        ]

        def project(hidden_TH: Tensor) -> Tensor:
            assert projection is not None
            return F.linear(hidden_TH, *projection)

        found = terms(self._objective, taps[0], taps[1], project, packed.segments, totals)
        return float(sum(float(term) for term in found.values()))

    @functools.cached_property
    def _halves(self) -> tuple[Packed, Packed]:
        """Text to fit on and text to measure on: every other piece, so that both are of the same kind."""
        ends = itertools.accumulate(map(len, self._pieces))
        enough = 1 + sum(1 for _ in itertools.takewhile(lambda end: end < 2 * TRIAL_TOKENS, ends))
        return pack(self._pieces[:enough:2]), pack(self._pieces[1:enough:2])

    def _fitted(self, cut: Cut, packed: Packed, level: spec.Refit) -> tuple[BertModel, Affine | None]:
        state = apply.student(self._weights.state, cut, frozenset())
        config = {**self._config, **checkpoint.student_config(self._config, self._shape)}
        student = self._built(config, state)
        packed = packed.to(self._device)
        pairs = self._objective.hidden
        return student, closed.refit(self._teacher, student, cut, packed, level=level, hidden=pairs)

    def _built(self, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> BertModel:
        bert = checkpoint.build_encoder(config, state, dtype=torch.float32).requires_grad_(False)
        torch.nn.Module.to(bert, self._device)
        return bert


def neighbours(layers: Layers, depth: int) -> list[Layers]:
    """All choices that differ in one layer; the last stays. The nearest exchanges first."""
    *free, last = layers
    outside = [layer for layer in range(1, depth) if layer not in free]
    exchanges = sorted((abs(out - gone), gone, out) for gone in free for out in outside)
    return [(*sorted({*free, out} - {gone}), last) for _, gone, out in exchanges]


def pieces(job: spec.JobSpec, folder: Path) -> list[list[int]]:
    """The first `TOKENS` tokens of documents that are never held out, cut as packed rows are: [CLS] piece [SEP].

    There are two pieces at least, however long the job's sequences are.
    """
    tokenizer = tokenize.open_tokenizer(folder)
    special, room = tokenize.special(tokenizer), min(job.seq_length, TRIAL_TOKENS // 4) - 2
    found: list[list[int]] = []
    count = 0
    for document in held_out.trained_on(job.corpus):
        ids = [i for one in tokenizer.encode_batch(document, add_special_tokens=False) for i in one.ids]
        for first in range(0, len(ids), room):
            found.append([special.cls, *ids[first : first + room], special.sep])
            count += len(found[-1])
        if count >= TOKENS:
            return found
    if count < TOKENS // 8:
        raise errors.CorpusError(
            f"refit: wanted {TOKENS} tokens of training text, or {TOKENS // 8} at least; {job.corpus} has {count} in "
            "documents that are never held out; give more text, or refit 'none' and layers that are not measured",
            field="refit",
            wanted=TOKENS,
            got=count,
        )
    return found


def pack(many: Sequence[Sequence[int]]) -> Packed:
    """Pieces of text laid end to end."""
    ids_T = torch.tensor([i for piece in many for i in piece])
    positions_T = torch.cat([torch.arange(len(piece)) for piece in many])
    return Packed(ids_T, positions_T, torch.zeros_like(ids_T), Segments.packed([len(piece) for piece in many]))


def write(projection: Affine, path: Path) -> None:
    """Keep a projection as safetensors."""
    tensors = {"weight": projection.weight_GF.cpu().contiguous(), "bias": projection.bias_G.cpu().contiguous()}
    safetensors.torch.save_file(tensors, path)


def read(run: rundir.RunDir) -> Affine | None:
    """A run's fitted projection, if it has one. Raises `RunFolderError` if it is damaged."""
    if not run.projection.exists():
        return None
    try:
        found = safetensors.torch.load_file(run.projection)
        return Affine(found["weight"], found["bias"])
    except (safetensors.SafetensorError, KeyError) as error:
        raise errors.RunFolderError(f"{run.projection} is damaged ({error}); extract the student again") from None
