"""Tokenized pieces on disk: token ids, and where sentences and documents end. One shard a piece, never half-written."""

from __future__ import annotations

import hashlib
import itertools
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from etd_ds.contract import rundir
from etd_ds.data import encode, reading, sources, splitting, tokenize

KINDS = ("tokens", "sentences", "documents")
SENTENCE = np.dtype("<u4")
DOCUMENT = np.dtype([("hash", "<u8"), ("sentences", "<u4"), ("tokens", "<u4")])
_BLOCK = 256  # documents handed to the tokenizer at once
_PUNCTUATION = bytes(byte for byte in range(128) if not chr(byte).isalnum())


class Shard(BaseModel):
    """What stands in the files of a shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: int
    """Which of the corpus' sources it came from, from 0."""
    documents: int
    sentences: int
    tokens: int
    unknown: int
    """How many of the tokens are [UNK]."""
    tally: dict[str, int]
    """Of `reading.Tally`."""
    files: dict[str, rundir.FileDigest]


def name(index: int, kind: str) -> str:
    """File of a shard: `tokens`, `sentences` (tokens in each) or `documents` (hash, sentences and tokens of each)."""
    return f"{index:05d}.{kind}"


def description(index: int) -> str:
    """The file that says what is in a shard, and that it is whole."""
    return f"{index:05d}.json"


def write(folder: Path, index: int, source: int, piece: sources.Piece, encoder: encode.Encoder) -> Shard:
    """Tokenize a piece into shard `index` of `folder`, in constant memory whatever its size.

    The description comes last, so it vouches for the rest. Raises `CorpusError`, or `OSError` from writing.
    """
    tally = reading.Tally()
    special = tokenize.special(encoder.tokenizer)
    counts = dict.fromkeys(("documents", "sentences", "tokens", "unknown"), 0)
    with ExitStack() as stack:
        columns = [stack.enter_context(_Column(folder / name(index, kind))) for kind in KINDS]
        for block in _blocks(reading.documents(piece, tally)):
            ids, lengths, records = _encode(block, encoder)
            counts["unknown"] += int((ids == special.unk).sum())
            for kind, column, array in zip(KINDS, columns, (ids.astype(special.dtype), lengths, records), strict=True):
                counts[kind] += len(array)
                column.append(array)
        files = {column.path.name: column.publish() for column in columns}
    shard = Shard(source=source, **counts, tally=asdict(tally), files=files)
    rundir.publish_json(folder / description(index), shard)
    return shard


def read(folder: Path, index: int) -> Shard | None:
    """Shard `index` if it is in `folder` whole and unchanged, else `None`."""
    try:
        shard = Shard.model_validate_json((folder / description(index)).read_bytes())
        whole = all(rundir.digest(folder / file) == wanted for file, wanted in shard.files.items())
    except (FileNotFoundError, ValidationError):
        return None
    return shard if whole else None


def tokens(folder: Path, index: int, special: tokenize.Special) -> np.ndarray:
    """Token ids of a shard, memory-mapped."""
    return mapped(folder / name(index, "tokens"), special.dtype)


def sentences(folder: Path, index: int) -> np.ndarray:
    """Tokens in each sentence of a shard."""
    return mapped(folder / name(index, "sentences"), SENTENCE)


def documents(folder: Path, index: int) -> np.ndarray:
    """`DOCUMENT` records of a shard."""
    return mapped(folder / name(index, "documents"), DOCUMENT)


def mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    """A file of records, memory-mapped, as a plain array, which is much quicker to slice than a memmap."""
    if path.stat().st_size == 0:  # which cannot be mapped
        return np.empty(0, dtype)
    return np.asarray(np.memmap(path, dtype, mode="r"))


def text_hash(text: str) -> int:
    """64 bits that ignore case, whitespace and ASCII punctuation, so that near copies are one document."""
    bare = "".join(text.casefold().split()).encode().translate(None, _PUNCTUATION)
    return int.from_bytes(hashlib.blake2b(bare, digest_size=8).digest(), "little")


def checksum(*parts: np.ndarray) -> int:
    """CRC-32 of arrays one after another."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part.data, crc)
    return crc


def _blocks(documents: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(documents)
    while block := list(itertools.islice(iterator, _BLOCK)):
        yield block


def _encode(block: list[str], encoder: encode.Encoder) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Token ids of all sentences, their lengths, and the records of the documents; what holds no token is left out.
    split = [splitting.sentences(document) for document in block]
    ids, lengths = encoder([sentence for sentences in split for sentence in sentences])
    owners = np.repeat(np.arange(len(block)), [len(sentences) for sentences in split])
    owners, lengths = owners[lengths > 0], lengths[lengths > 0]
    records = np.empty(len(block), DOCUMENT)
    records["hash"] = [text_hash(document) for document in block]
    records["sentences"] = np.bincount(owners, minlength=len(block))
    records["tokens"] = np.bincount(owners, lengths, minlength=len(block))
    return ids, lengths.astype(SENTENCE), records[records["tokens"] > 0]


class _Column:
    """A file that grows aside, is hashed on the way, and gets its name when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file = self._aside.open("wb")
        self._sha256 = hashlib.sha256()

    def __enter__(self) -> _Column:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # what a full disk did not take is thrown away here
            self._file.close()
        self._aside.unlink(missing_ok=True)

    def append(self, array: np.ndarray) -> None:
        content = array.tobytes()
        self._file.write(content)
        self._sha256.update(content)

    def publish(self) -> rundir.FileDigest:
        # Not synced here: whoever takes up the shard compares its digest, and the whole corpus is synced in the end.
        self._file.flush()
        size = self._file.tell()
        self._aside.replace(self.path)
        return rundir.FileDigest(size=size, sha256=self._sha256.hexdigest())
