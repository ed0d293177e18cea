"""Splits decided by a hash of a key: everything that is made from one key is in one split only."""

from __future__ import annotations

import hashlib

from etd_ds.evaluate.examples import Example, Material


class Splits:
    """Examples by the split of their key: 80 % train, 10 % dev, 10 % test."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Example]] = {"train": [], "dev": [], "test": []}

    def add(self, key: str, example: Example) -> None:
        """Put an example into its key's split."""
        self._rows[split_of(key)].append(example)

    def material(self) -> Material:
        """All that was added."""
        return Material(self._rows["train"], {name: self._rows[name] for name in ("dev", "test")})


def split_of(key: str) -> str:
    """`train`, `dev` or `test`."""
    return {0: "test", 1: "dev"}.get(number_of(key) % 10, "train")


def number_of(text: str) -> int:
    """A number from 0 to 2^64 that looks random and never changes."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
