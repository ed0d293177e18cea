"""Tasks from files in the formats in which they are distributed: GLUE's TSV folders, SQuAD v1.1's JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etd_ds.contract import errors
from etd_ds.evaluate.examples import Answer, Labelled, Material, Question
from etd_ds.evaluate.tasks import Glue, Squad, Task


def glue(task: Task, folder: Path) -> Material:
    """A GLUE task from `folder/<its name>/*.tsv`, or `folder/*.tsv`. Raises `EtdError` naming file and line."""
    assert isinstance(task.source, Glue)
    home = folder / task.source.folder if (folder / task.source.folder).is_dir() else folder
    train = list(_tsv(home / "train.tsv", task))
    return Material(train, {name: list(_tsv(home / file, task)) for name, file, _ in task.source.splits})


def squad(task: Task, folder: Path) -> Material:
    """SQuAD v1.1 from its two JSON files in `folder`. Raises `EtdError`."""
    assert isinstance(task.source, Squad)
    train, dev = (list(_questions(folder / name)) for name in (task.source.train, task.source.dev))
    return Material(train, {"dev": dev})


def refuse(path: Path, reason: str, *, line: int | None = None) -> errors.EtdError:
    """The error about a data file that cannot be used."""
    where = f"{path.name}, line {line}" if line else path.name
    return errors.EtdError(f"data: {where}: {reason}", field="data", got=path.name)


def label(task: Task, text: str) -> float:
    """Class number of a label's name, or the score. Raises `ValueError` if it is neither."""
    if task.kind == "regression":
        score = float(text)
        if not math.isfinite(score):
            raise ValueError(text)
        return score
    return float(task.labels.index(text))


def _tsv(path: Path, task: Task) -> Iterator[Labelled]:
    source = task.source
    assert isinstance(source, Glue)
    try:
        # GLUE's files are not quoted; newline characters inside a text are not line ends, so no splitlines()
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise refuse(path, f"missing; wanted GLUE's {source.folder} files as distributed") from None
    except UnicodeDecodeError as error:
        raise refuse(path, f"not UTF-8 ({error})") from None
    rows = [(number, line.rstrip("\r").split("\t")) for number, line in enumerate(lines, 1) if line.strip()]
    header: list[str] = []
    if isinstance(source.a, str) and rows:
        header = rows.pop(0)[1]
    wanted = [name for name in (source.a, source.b, source.label) if name is not None]
    if header and (lacking := [str(name) for name in wanted if name not in header]):
        raise refuse(path, f"wanted the columns {wanted}, it lacks {lacking}")
    places = [header.index(name) if isinstance(name, str) else name for name in wanted]
    kept = 0
    for number, cells in rows:
        # QQP as distributed holds a few broken lines, which BERT's own reader passes over too
        if len(cells) <= max(places) or (header and len(cells) != len(header)):
            continue
        texts = [cells[place] for place in places]
        try:
            value = label(task, texts[-1])
        except ValueError:
            asked = f"one of {', '.join(task.labels)}" if task.labels else "a number"
            raise refuse(path, f"wanted the label to be {asked}, got {texts[-1]!r}", line=number) from None
        kept += 1
        yield Labelled(texts[0], texts[1] if source.b is not None else None, value)
    if kept < 0.99 * len(rows) or not kept:
        raise refuse(path, f"only {kept} of {len(rows)} lines have the {max(places) + 1} columns or more that it needs")


def _questions(path: Path) -> Iterator[Question]:
    try:
        articles = json.loads(path.read_bytes())["data"]
        for article in articles:
            for paragraph in article["paragraphs"]:
                for row in paragraph["qas"]:
                    answers = [Answer(answer["text"], answer["answer_start"]) for answer in row["answers"]]
                    yield question(row["question"], paragraph["context"], answers)
    except FileNotFoundError:
        raise refuse(path, "missing; wanted SQuAD v1.1's files as distributed") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, errors.EtdError):
            raise
        raise refuse(path, f"not in SQuAD v1.1's format ({type(error).__name__}: {error})") from None


def question(text: str, context: str, answers: list[Answer]) -> Question:
    """A question whose answers are checked against the context. Raises `EtdError`."""
    unique = tuple(dict.fromkeys(answers))
    if not unique:
        raise errors.EtdError(
            f"data: the question {text[:60]!r} has no answer; wanted SQuAD v1.1, not v2", field="data"
        )
    for answer in unique:
        if context[answer.start : answer.start + len(answer.text)] != answer.text:
            message = f"data: the answer {answer.text!r} does not stand at character {answer.start} of its context"
            raise errors.EtdError(message, field="data", got=answer.text)
    return Question(text, context, unique)


def from_columns(texts: dict[str, Any]) -> list[Answer]:
    """Answers as `datasets` holds them: parallel lists."""
    return [Answer(text, start) for text, start in zip(texts["text"], texts["answer_start"], strict=True)]
