"""Tensors that are dear to compute, kept under a key of all that decides them: whole, checked, computed once."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor

from etd_ds.contract import rundir

_TENSORS, _INFO = "tensors.safetensors", "info.json"


class Entry(NamedTuple):
    """What was stored, and the sha256 of its tensors file."""

    tensors: dict[str, Tensor]
    info: dict[str, Any]
    sha256: str


def key(parts: Mapping[str, Any]) -> str:
    """A name for everything that the result depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


def load(folder: Path) -> Entry | None:
    """The entry, or `None` if it is missing or its content is not what was stored."""
    try:
        noted = json.loads((folder / _INFO).read_bytes())
        # Read once, so that what was checked is what is used; a mapped file could change later.
        content = (folder / _TENSORS).read_bytes()
        if hashlib.sha256(content).hexdigest() != noted["sha256"]:
            return None
        return Entry(safetensors.torch.load(content), noted["info"], noted["sha256"])
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
        return None


def store(folder: Path, tensors: Mapping[str, Tensor], info: dict[str, Any]) -> Entry:
    """Write an entry in one rename."""
    with rundir.publishing(folder) as aside:
        safetensors.torch.save_file({name: t.contiguous() for name, t in tensors.items()}, aside / _TENSORS)
        sha256 = rundir.digest(aside / _TENSORS).sha256
        (aside / _INFO).write_text(json.dumps({"sha256": sha256, "info": info}, indent=2))
    return Entry(dict(tensors), info, sha256)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """One process at a time for this entry; the system frees the lock of a process that dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
