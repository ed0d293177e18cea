"""The paper's protocol for one task: a grid of settings, the best on the deciding split, more seeds of that one.

`out/<task>/` holds one file a fine-tuning, so that a command started again continues; `out/<task>.json` sums up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError

from etd_ds import __version__
from etd_ds.bert import checkpoint
from etd_ds.contract import errors, rundir, spec
from etd_ds.data import tokenize
from etd_ds.engine import ranks
from etd_ds.evaluate import finetune
from etd_ds.evaluate.examples import Material
from etd_ds.evaluate.finetune import Report, Setting
from etd_ds.evaluate.floors import floors
from etd_ds.evaluate.metrics import Scores
from etd_ds.evaluate.summaries import Summary, Trial, spreads
from etd_ds.evaluate.tasks import Offline, Task


def evaluate(
    model: checkpoint.Teacher,
    task: Task,
    material: Material,
    out: Path,
    *,
    cache: Path,
    paper: Task,
    seeds: Sequence[int],
    limited: bool,
    joined: ranks.Ranks,
    precision: spec.Precision,
    report: Report,
) -> Summary:
    """Fine-tune and score; `paper` is the task's row as the table has it, to say what was scaled down.

    The grid runs with the first seed, the further seeds with the grid's best setting only.
    """
    examples = material.sha256()
    encoded = finetune.encode(task, material, tokenize.open_tokenizer(model.folder))
    folder = out / task.name
    key = {
        "model": model.sha256,
        "examples": examples,
        "batch_size": task.protocol.batch_size,
        "max_tokens": task.protocol.max_tokens,
        "precision": precision,
    }

    def tried(setting: Setting) -> Trial:
        path = folder / f"{_name(setting, key)}.json"
        if (known := _read(path)) is not None:
            return known
        said = f"{task.name} lr {setting.learning_rate:g} epochs {setting.epochs} seed {setting.seed}"
        outcome = finetune.run(
            model.folder,
            task,
            material,
            encoded,
            setting,
            joined=joined,
            precision=precision,
            report=lambda what, done, of: report(f"{said}: {what}", done, of),
        )
        trial = Trial(**asdict(setting), **asdict(outcome))
        rundir.publish_json(path, trial)
        return trial

    def deciding(trial: Trial) -> float:
        return trial.scores[task.decides][task.metrics[0]]

    grid = [tried(setting) for setting in _grid(task, seeds[0])]
    best = max(grid, key=deciding)  # the first of equals: the lower rate, the fewer epochs
    chosen = [best, *(tried(Setting(best.learning_rate, best.epochs, seed)) for seed in seeds[1:])]
    summary = Summary(
        task=task.name,
        model=model.reference,
        model_sha256=model.sha256,
        examples_sha256=examples,
        train_examples=len(material.train),
        scaled_down=tuple(_scaled_down(task, paper, limited, len(material.train))),
        learning_rate=best.learning_rate,
        epochs=best.epochs,
        decided_on=task.decides,
        reported=task.reports,
        seeds=tuple(seeds),
        scores=spreads([trial.scores for trial in chosen]),
        floors=_floors(task, material, cache / "floors" / f"{task.name}-{examples[:16]}.json"),
        trials=(*grid, *chosen[1:]),
        version=__version__,
    )
    rundir.publish_json(out / f"{task.name}.json", summary)
    return summary


def _floors(task: Task, material: Material, path: Path) -> dict[str, Scores] | None:
    """The floors of an offline task; they depend on the examples alone and are kept for all models."""
    if not isinstance(task.source, Offline):
        return None
    if not path.exists():
        rundir.publish_json(path, floors(task, material))
    found: dict[str, Scores] = json.loads(path.read_bytes())
    return found


def _grid(task: Task, seed: int) -> Iterator[Setting]:
    for rate in task.protocol.learning_rates:
        for epochs in task.protocol.epochs:
            yield Setting(rate, epochs, seed)


def _name(setting: Setting, key: dict[str, object]) -> str:
    """File name of a trial: readable, and another one whenever anything that it depends on is another."""
    whole = json.dumps([asdict(setting), key], sort_keys=True)
    digest = hashlib.sha256(whole.encode()).hexdigest()[:12]
    return f"lr{setting.learning_rate:g}-ep{setting.epochs}-seed{setting.seed}-{digest}"


def _read(path: Path) -> Trial | None:
    try:
        return Trial.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise errors.EtdError(f"out: {path} is not a trial of ours ({error}); remove it", field="out") from None


def _scaled_down(task: Task, paper: Task, limited: bool, train: int) -> Iterator[str]:
    if limited:
        yield f"{train} training examples"
    for what in ("learning_rates", "epochs", "batch_size", "max_tokens"):
        here, there = getattr(task.protocol, what), getattr(paper.protocol, what)
        if here != there:
            yield f"{what.replace('_', ' ')} {here} instead of {there}"
