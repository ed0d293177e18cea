"""A prepared corpus: memory-mapped token shards, and for each split an index that says which tokens make which row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from etd_ds.contract import errors, rundir
from etd_ds.data import shards, tokenize

FORMAT = 1
"""Counts up when the same inputs would give other rows; part of every key."""
Layout = Literal["packed", "pairs"]
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"

SEGMENT = np.dtype([("shard", "<u4"), ("a", "<u4"), ("a_len", "<u4"), ("b", "<u4"), ("b_len", "<u4"), ("crc", "<u4")])
"""A segment: tokens [a, a + a_len) of a shard, and for a pair [b, b + b_len) too; the CRC-32 of all of them."""
ROW = np.dtype([("first", "<u8"), ("segments", "<u4"), ("tokens", "<u4"), ("pairs", "<u8")])
"""A row: its segments, its tokens with [CLS] and [SEP], and its pairs of tokens that attend to each other."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceEntry(Frozen):
    """One input as it was read."""

    reference: str
    revision: str | None
    """Commit, for a hub data set."""
    identity: str
    """Hash of the contents, or of the hub commit."""
    bytes: int
    weight: float


class Options(Frozen):
    """Everything beside the inputs that decides the rows."""

    format: int = FORMAT
    tokenizer: str
    """sha256 of the tokenizer."""
    seq_length: int
    layout: Layout
    validation_sequences: int
    seed: int
    """Of the pairs' random draws; 0 in the packed layout, which has none."""


class Split(Frozen):
    rows: int
    segments: int
    tokens: int
    """With [CLS] and [SEP]."""


class Manifest(Frozen):
    """What a prepared corpus holds and what it was made from. Written last: where it stands, the corpus is whole."""

    key: str
    sources: tuple[SourceEntry, ...]
    options: Options
    special: dict[str, int]
    """Ids of [CLS], [SEP], [PAD], [MASK], [UNK], and the vocabulary size."""
    documents: int
    sentences: int
    tokens: int
    """Without [CLS] and [SEP], every document once."""
    unknown: int
    duplicates: int
    """Documents that say what one before them said, but for case, blanks and punctuation. They share a side."""
    tally: dict[str, int]
    train: Split
    validation: Split
    shards: tuple[shards.Shard, ...]
    files: dict[str, rundir.FileDigest]
    """Digests of the tokenizer and of the indices, by name."""


@dataclass(frozen=True)
class Row:
    """Up to `seq_length` tokens: segments ([CLS] a [SEP], or [CLS] a [SEP] b [SEP]) of the given lengths, in order."""

    ids_T: np.ndarray
    """int64."""
    types_T: np.ndarray
    """int64: 1 for b and its [SEP], else 0."""
    lengths: tuple[int, ...]


class Rows:
    """Rows of one split, read from the memory-mapped shards as they are asked for; each is checked by its CRCs."""

    def __init__(self, folder: Path, split: str, tokens: Sequence[np.ndarray], special: tokenize.Special) -> None:
        self._segments = shards.mapped(folder / f"{split}.segments", SEGMENT)
        self._rows = shards.mapped(folder / f"{split}.rows", ROW)
        self._tokens = tokens
        self._special = special
        self._folder = folder

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def pad_id(self) -> int:
        return self._special.pad

    def sizes(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, attending pairs) of rows, as int64, from the index alone."""
        rows = self._rows[indices]
        return rows["tokens"].astype(np.int64), rows["pairs"].astype(np.int64)

    def __getitem__(self, index: int) -> Row:
        """Row `index`. Raises `IndexError`, or `CorpusError` if its tokens changed since preparation."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        row = self._rows[index]
        first = int(row["first"])
        segments = self._segments[first : first + int(row["segments"])].tolist()
        ids_T = np.empty(int(row["tokens"]), np.int64)
        types_T = np.zeros(len(ids_T), np.int64)
        lengths, at = [], 0
        for shard, a, a_len, b, b_len, crc in segments:
            tokens = self._tokens[shard]
            parts = tokens[a : a + a_len], tokens[b : b + b_len]
            if shards.checksum(*parts) != crc:
                raise _changed(self._folder / shards.name(shard, "tokens"))
            end = self._fill(ids_T, types_T, at, *parts)
            lengths.append(end - at)
            at = end
        assert at == len(ids_T)
        return Row(ids_T, types_T, tuple(lengths))

    def _fill(self, ids_T: np.ndarray, types_T: np.ndarray, at: int, first: np.ndarray, second: np.ndarray) -> int:
        # Writes one segment from `at` on and returns its end.
        ids_T[at] = self._special.cls
        end = at + 1 + len(first)
        ids_T[at + 1 : end] = first
        ids_T[end] = self._special.sep
        at, end = end + 1, end + 1
        if len(second):
            end = at + len(second)
            ids_T[at:end] = second
            ids_T[end] = self._special.sep
            end += 1
            types_T[at:end] = 1
        return end


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus, opened. The two splits share no document, not even a near copy."""

    folder: Path
    manifest: Manifest
    train: Rows
    validation: Rows


def is_prepared(folder: Path) -> bool:
    """Whether `folder` holds a whole prepared corpus."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """What `folder` says it holds. Raises `CorpusError`."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise errors.CorpusError(f"corpus: {folder} holds no prepared corpus (no manifest.json)") from None
    except ValidationError as error:
        raise errors.CorpusError(
            f"corpus: {folder}/manifest.json is damaged or of another version; prepare it again ({error.error_count()} "
            "errors)"
        ) from None


def open_corpus(folder: Path) -> Corpus:
    """A prepared corpus, its indices verified in full; its tokens are verified row by row as they are read."""
    manifest = read_manifest(folder)
    if manifest.options.format != FORMAT:
        raise errors.CorpusError(
            f"corpus: {folder} has format {manifest.options.format}, wanted {FORMAT}; prepare it again"
        )
    for name, wanted in manifest.files.items():
        _verify(folder / name, wanted)
    special = tokenize.Special(**manifest.special)
    tokens = []
    for index, shard in enumerate(manifest.shards):
        path = folder / shards.name(index, "tokens")
        if not path.is_file() or path.stat().st_size != shard.files[path.name].size:
            raise _changed(path)
        tokens.append(shards.tokens(folder, index, special))
    train, validation = (Rows(folder, split, tokens, special) for split in ("train", "validation"))
    return Corpus(folder, manifest, train, validation)


def verify(folder: Path) -> None:
    """Compare every file of a prepared corpus with its digest. Raises `CorpusError` naming the first that differs."""
    manifest = read_manifest(folder)
    for name, wanted in manifest.files.items():
        _verify(folder / name, wanted)
    for shard in manifest.shards:
        for name, wanted in shard.files.items():
            _verify(folder / name, wanted)


def _verify(path: Path, wanted: rundir.FileDigest) -> None:
    if not path.is_file() or rundir.digest(path) != wanted:
        raise _changed(path)


def _changed(path: Path) -> errors.CorpusError:
    return errors.CorpusError(
        f"corpus: {path} is missing or changed after it was prepared; delete its folder and prepare the corpus again"
    )


def segment_lengths(segments: np.ndarray) -> np.ndarray:
    """Tokens of `SEGMENT` records, [CLS] and [SEP] included, as int64."""
    b_len = segments["b_len"].astype(np.int64)
    lengths: np.ndarray = segments["a_len"] + b_len + np.where(b_len > 0, 3, 2)
    return lengths
