"""One fine-tuning: a checkpoint, a task, a learning rate, a number of epochs and a seed, to scores."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import tokenizers
import torch

from etd_ds.contract import errors, spec
from etd_ds.data import tokenize
from etd_ds.engine import config, ranks
from etd_ds.engine.runtime import Engine
from etd_ds.engine.schedule import learning_rate
from etd_ds.evaluate import encoding, metrics, reader, spans, tasks
from etd_ds.evaluate.encoding import Inputs, Row
from etd_ds.evaluate.examples import Labelled, Material, Question
from etd_ds.evaluate.metrics import Scores
from etd_ds.evaluate.tasks import Task

Report = Callable[[str, int, int], None]
"""(what is being done, done, of how many)"""


@dataclass(frozen=True)
class Setting:
    """What one fine-tuning depends on beside model and task."""

    learning_rate: float
    epochs: int
    seed: int


@dataclass(frozen=True)
class Outcome:
    scores: Scores
    steps: int
    first_loss: float
    last_loss: float
    """Means over the first and the last tenth of the steps."""
    seconds: float


@dataclass(frozen=True)
class Encoded:
    """A task's examples as this model's tokenizer sees them; made once for all settings."""

    rows: Sequence[Row]
    targets: np.ndarray
    """(examples,) class numbers or scores, or (windows, 2) places."""
    evaluations: Mapping[str, Sequence[Row]]
    windows: Mapping[str, Sequence[Sequence[spans.Window]]]
    """Spans only: the rows of `evaluations`, by question."""
    pad_id: int


def encode(task: Task, material: Material, tokenizer: tokenizers.Tokenizer) -> Encoded:
    """All splits as rows of tokens, with the targets of training."""
    protocol, pad_id = task.protocol, tokenize.special(tokenizer).pad
    if task.kind != "span":
        train = cast("Sequence[Labelled]", material.train)
        evaluations = {
            name: encoding.labelled(tokenizer, cast("Sequence[Labelled]", rows), protocol.max_tokens)
            for name, rows in material.evaluations.items()
        }
        rows = encoding.labelled(tokenizer, train, protocol.max_tokens)
        return Encoded(rows, np.array([row.label for row in train]), evaluations, {}, pad_id)
    questions = cast("Sequence[Question]", material.train)
    targets, kept = [], []
    for question, parts in zip(questions, spans.windows(tokenizer, questions, protocol), strict=True):
        kept += [window.row for window in parts]
        targets += [window.target(question.answers[0]) for window in parts]
    windows = {
        name: spans.windows(tokenizer, cast("Sequence[Question]", rows), protocol)
        for name, rows in material.evaluations.items()
    }
    flat = {name: [window.row for parts in each for window in parts] for name, each in windows.items()}
    return Encoded(kept, np.array(targets), flat, windows, pad_id)


def run(
    model: Path,
    task: Task,
    material: Material,
    encoded: Encoded,
    setting: Setting,
    *,
    joined: ranks.Ranks,
    precision: spec.Precision,
    report: Report,
) -> Outcome:
    """Fine-tune on `train`, score every evaluation once at the end. Raises `TrainingError` when the loss is not finite.

    The same arguments give the same scores on the same machine.
    """
    started = time.monotonic()
    generator = torch.Generator().manual_seed(setting.seed)
    torch.manual_seed(setting.seed)  # dropout
    module = reader.build(model, task, generator).to(joined.device)
    engine = Engine(module, _ds_config(module, task, setting, precision), joined)
    losses = _train(engine, task, encoded, setting, generator, joined.device, report)
    engine.eval()
    scores: Scores = {}
    for name, rows in encoded.evaluations.items():
        logits = predict(module, rows, encoded.pad_id, report=lambda done, of, n=name: report(n, done, of))  # type: ignore[misc]
        scores[name] = score(task, material.evaluations[name], logits, encoded.windows.get(name, ()))
    tenth = math.ceil(len(losses) / 10)
    outcome = Outcome(
        scores,
        len(losses),
        float(np.mean(losses[:tenth])),
        float(np.mean(losses[-tenth:])),
        time.monotonic() - started,
    )
    engine.close()
    del engine, module
    gc.collect()  # the next setting needs the memory, and engines are full of cycles
    return outcome


def _train(
    engine: Engine,
    task: Task,
    encoded: Encoded,
    setting: Setting,
    generator: torch.Generator,
    device: torch.device,
    report: Report,
) -> list[float]:
    """The loss of every step."""
    lengths = [len(row.ids_S) for row in encoded.rows]
    steps = setting.epochs * math.ceil(len(lengths) / task.protocol.batch_size)
    losses: list[float] = []
    engine.train()
    for _ in range(setting.epochs):
        for chosen in encoding.batches(lengths, task.protocol.batch_size, generator):
            inputs = encoding.pad([encoded.rows[i] for i in chosen], encoded.pad_id)
            targets = torch.from_numpy(encoded.targets[chosen]).to(device)
            loss = reader.loss(task.kind, engine(_to(inputs, device)), targets)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise errors.TrainingError(
                    f"{task.name}: the loss is {losses[-1]} at step {len(losses)}; try a lower learning rate than "
                    f"{setting.learning_rate:g}, or precision fp32"
                )
            engine.backward(loss)
            peak, warmup = setting.learning_rate, tasks.WARMUP_RATIO
            engine.update(learning_rate(len(losses), updates=steps, peak=peak, warmup_ratio=warmup))
            report("train", len(losses), steps)
    return losses


@torch.no_grad()
def predict(
    module: reader.Reader, rows: Sequence[Row], pad_id: int, *, report: Callable[[int, int], None]
) -> list[np.ndarray]:
    """Logits of each row, in order: (outputs,), or (S, 2) for spans."""
    device = next(module.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids_S))
    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    for first in range(0, len(order), 32):
        chosen = order[first : first + 32]
        logits = module(_to(encoding.pad([rows[i] for i in chosen], pad_id), device)).cpu().numpy()
        for i, row_logits in zip(chosen, logits, strict=True):
            found[i] = row_logits
        report(min(first + 32, len(order)), len(order))
    return found


def score(
    task: Task,
    examples: Sequence[Labelled | Question],
    logits: Sequence[np.ndarray],
    windows: Sequence[Sequence[spans.Window]],
) -> dict[str, float]:
    """The task's metrics of these logits, in per cent."""
    if task.kind == "span":
        questions, answers, at = cast("Sequence[Question]", examples), [], 0
        for question, parts in zip(questions, windows, strict=True):
            these = logits[at : at + len(parts)]
            answers.append(spans.best_answer(question, parts, these, task.protocol.max_answer))
            at += len(parts)
        gold = [[answer.text for answer in question.answers] for question in questions]
        return {name: metrics.ANSWER_METRICS[name](answers, gold) for name in task.metrics}
    table = np.stack(logits)
    predicted = table.argmax(1) if task.kind == "classification" else table[:, 0]
    labels = [row.label for row in cast("Sequence[Labelled]", examples)]
    return {name: metrics.LABEL_METRICS[name](predicted, labels) for name in task.metrics}


def _to(inputs: Inputs, device: torch.device) -> Inputs:
    return Inputs(*(tensor.to(device, non_blocking=True) for tensor in inputs))


def _ds_config(module: reader.Reader, task: Task, setting: Setting, asked: spec.Precision) -> dict[str, object]:
    """DeepSpeed's config: ZeRO stage 1 on one rank, and the protocol's numbers through the spec's own fields."""
    base = {"zero_optimization": {"stage": 1, "overlap_comm": False}}
    machine = ranks.hardware()
    job = spec.JobSpec(
        layers=module.bert.config.num_hidden_layers,
        hidden=module.bert.config.hidden_size,
        seq_length=task.protocol.max_tokens,
        batch_size=task.protocol.batch_size,
        learning_rate=setting.learning_rate,
        weight_decay=tasks.WEIGHT_DECAY,
        max_grad_norm=tasks.MAX_GRAD_NORM,
    )
    return config.complete(
        base,
        job,
        precision=config.precision(asked, base, machine),
        micro=task.protocol.batch_size,
        world_size=1,
        compiler=machine.compiler,
    )
