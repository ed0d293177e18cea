"""A student beside its teacher: size, speed, and how alike the two see the same sentences."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

from etd_ds.contract import errors

LATENCY_TOKENS = 64
LATENCY_RUNS = 30


@dataclass(frozen=True)
class Side:
    """One model: what it weighs and how long a sentence of `LATENCY_TOKENS` tokens takes, alone, on the CPU."""

    parameters: int
    """As stored in the weights' files."""
    megabytes: float
    """Size of the weights' files, 10^6 bytes."""
    milliseconds: float
    """Median wall time of a forward pass over one sequence."""


@dataclass(frozen=True)
class Comparison:
    """Teacher against student on `sentences` texts; both similarities are 1 for a perfect copy."""

    teacher: Side
    student: Side
    sentences: int
    correlation: float
    """Pearson correlation of the cosines between all pairs of mean-pooled sentence embeddings."""
    neighbours: float
    """Share of sentences whose nearest other sentence is the same one for teacher and student."""
    chance_neighbours: float
    """What `neighbours` would be for unrelated embeddings: 1 / (sentences - 1)."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(teacher: Path, student: Path, sentences: Sequence[str], *, progress: bool = True) -> Comparison:
    """Load both folders with stock `transformers`, as any user would, and measure them side by side.

    Latencies are taken in turns, so a busy machine slows both alike. Raises `EtdError` for fewer than 3 sentences.
    """
    if len(sentences) < 3:
        raise errors.EtdError(f"sentences: wanted at least 3, got {len(sentences)}", field="sentences")
    models = [_load(folder) for folder in (teacher, student)]
    tokenizer = AutoTokenizer.from_pretrained(student)
    embeddings = [_embed(model, tokenizer, sentences, progress=progress) for model in models]
    milliseconds = _latencies(models)
    sides = [_side(folder, ms) for folder, ms in zip((teacher, student), milliseconds, strict=True)]
    correlation, neighbours = alike(embeddings[0], embeddings[1])
    return Comparison(sides[0], sides[1], len(sentences), correlation, neighbours, 1 / (len(sentences) - 1))


def alike(a_XH: torch.Tensor, b_XG: torch.Tensor) -> tuple[float, float]:
    """How alike two embeddings of the same X sentences are, whatever their widths: (correlation, neighbours).

    Depends on directions only: rotating or scaling either side changes nothing.
    """
    cosines = []
    for side in (a_XH, b_XG):
        unit = torch.nn.functional.normalize(side.double(), dim=-1)
        cosines.append(unit @ unit.mT)
    rows, columns = torch.triu_indices(len(a_XH), len(a_XH), offset=1)
    correlation = torch.corrcoef(torch.stack([c_XX[rows, columns] for c_XX in cosines]))[0, 1]
    nearest = [c_XX.fill_diagonal_(-2).argmax(dim=-1) for c_XX in cosines]
    return float(correlation), float((nearest[0] == nearest[1]).double().mean())


def _side(folder: Path, milliseconds: float) -> Side:
    """Parameters are those that the checkpoint holds, pooler and heads included; its integer buffers are none."""
    parameters, size = 0, 0
    for weights in folder.glob("*.safetensors"):
        size += weights.stat().st_size
        with safe_open(weights, framework="pt") as file:
            stored = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118 - not a dictionary
            parameters += sum(math.prod(tensor.get_shape()) for tensor in stored if "F" in tensor.get_dtype())
    return Side(parameters, size / 1e6, milliseconds)


def _load(folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = AutoModel.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", add_pooling_layer=False, trust_remote_code=False
    )
    return model.eval()


@torch.inference_mode()
def _embed(model: Any, tokenizer: Any, sentences: Sequence[str], *, progress: bool) -> torch.Tensor:
    """Mean-pooled last hidden states, (sentences, H)."""
    pooled = []
    for start in tqdm(range(0, len(sentences), 32), desc="embed", unit="batch", disable=None if progress else True):
        batch = tokenizer(
            list(sentences[start : start + 32]), padding=True, truncation=True, max_length=128, return_tensors="pt"
        )
        hidden_BSH = model(**batch).last_hidden_state
        mask_BS1 = batch["attention_mask"].unsqueeze(-1)
        pooled.append((hidden_BSH * mask_BS1).sum(1) / mask_BS1.sum(1))
    return torch.cat(pooled)


@torch.inference_mode()
def _latencies(models: Sequence[Any]) -> list[float]:
    """Median milliseconds of each model for one sequence, measured in turns."""
    ids_BS = torch.arange(1000, 1000 + LATENCY_TOKENS)[None]
    taken: list[list[float]] = [[] for _ in models]
    for run in range(LATENCY_RUNS + 3):
        for model, times in zip(models, taken, strict=True):
            start = time.perf_counter()
            model(input_ids=ids_BS)
            if run >= 3:  # the first ones warm caches up
                times.append(time.perf_counter() - start)
    return [1e3 * statistics.median(times) for times in taken]
