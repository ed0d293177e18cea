"""What every source of a task is read into: labelled texts or questions, in splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Labelled(NamedTuple):
    """One or two texts with a class number or a score."""

    a: str
    b: str | None
    label: float


class Answer(NamedTuple):
    """A span of the context: `context[start : start + len(text)] == text`."""

    text: str
    start: int


class Question(NamedTuple):
    """A question about a context; several answers may be right."""

    question: str
    context: str
    answers: tuple[Answer, ...]


Example = Labelled | Question


@dataclass(frozen=True)
class Material:
    """All examples of a task; `evaluations` by the names that its table row gives them."""

    train: Sequence[Example]
    evaluations: Mapping[str, Sequence[Example]]

    def limited(self, train: int | None, evaluation: int | None) -> Material:
        """At most so many of each, chosen evenly over the order of the source."""
        return Material(
            _thin(self.train, train), {name: _thin(rows, evaluation) for name, rows in self.evaluations.items()}
        )

    def sha256(self) -> str:
        """Hash of every example: equal means that the same was asked."""
        whole = hashlib.sha256()
        for name, rows in (("train", self.train), *sorted(self.evaluations.items())):
            whole.update(f"{name} {len(rows)}\n".encode())
            for row in rows:
                whole.update(json.dumps(row).encode() + b"\n")
        return whole.hexdigest()


def _thin(rows: Sequence[Example], most: int | None) -> Sequence[Example]:
    if most is None or len(rows) <= most:
        return rows
    return [rows[i * len(rows) // most] for i in range(most)]
