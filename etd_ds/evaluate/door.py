"""The one door to a task's examples, wherever they are."""

from __future__ import annotations

from pathlib import Path

from etd_ds.contract import errors
from etd_ds.evaluate import local, offline, remote
from etd_ds.evaluate.examples import Material
from etd_ds.evaluate.tasks import Glue, Offline, Task


def open_task(task: Task, data: Path | None) -> Material:
    """The examples of a task: from files under `data`, else from a package or the hub. Raises `EtdError`."""
    if data is not None and not data.is_dir():
        raise errors.EtdError(f"data: {data} is not a folder", field="data", got=str(data))
    if isinstance(task.source, Offline):
        material = offline.load(task, data)
    elif data is None:
        material = remote.load(task)
    elif isinstance(task.source, Glue):
        material = local.glue(task, data)
    else:
        material = local.squad(task, data)
    for name, rows in (("train", material.train), *material.evaluations.items()):
        if not rows:
            raise errors.EtdError(f"data: {task.name} has no examples in {name}", field="data")
    return material
