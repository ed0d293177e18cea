"""Tasks from a data set hub, at the commits that the table pins."""

from __future__ import annotations

from typing import Any

from etd_ds.contract import errors
from etd_ds.evaluate import local
from etd_ds.evaluate.examples import Example, Labelled, Material
from etd_ds.evaluate.tasks import GLUE_COMMIT, GLUE_REPO, SQUAD_COMMIT, SQUAD_REPO, Glue, Task


def load(task: Task) -> Material:
    """All splits of a GLUE task or of SQuAD. Raises `EtdError` when the hub cannot be reached."""
    if isinstance(task.source, Glue):
        train = _glue(task, "train")
        return Material(train, {name: _glue(task, split) for name, _, split in task.source.splits})
    return Material(_squad("train"), {"dev": _squad("validation")})


def _glue(task: Task, split: str) -> list[Example]:
    source = task.source
    assert isinstance(source, Glue)
    rows = _rows(GLUE_REPO, source.config, GLUE_COMMIT, split)
    return [
        Labelled(row[source.hub_a], row[source.hub_b] if source.hub_b else None, float(row["label"])) for row in rows
    ]


def _squad(split: str) -> list[Example]:
    return [
        local.question(row["question"], row["context"], local.from_columns(row["answers"]))
        for row in _rows(SQUAD_REPO, None, SQUAD_COMMIT, split)
    ]


def _rows(repo: str, config: str | None, commit: str, split: str) -> Any:
    import datasets  # slow to import, and local files need none of it

    try:
        return datasets.load_dataset(repo, config, revision=commit, split=split)
    except Exception as error:  # the library raises many kinds for what is always the same: no such data here
        raise errors.EtdError(
            f"data: {repo} could not be had from the hub ({type(error).__name__}); check the network, give --data a "
            "folder with the files as distributed, or take a task of the group 'offline'",
            field="data",
            got=repo,
        ) from None
