"""Tokenized pieces on disk: token ids, and where sentences and documents end. One shard a piece, never half-written."""

from __future__ import annotations

import hashlib
import io
import itertools
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from etd_ds.contract import rundir
from etd_ds.data import encode, reading, sources, splitting, tokenize

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
    return f"{index:05d}.{kind}.npy"


def description(index: int) -> str:
    """The file that says what is in a shard, and that it is whole."""
    return f"{index:05d}.json"


def write(folder: Path, index: int, source: int, piece: sources.Piece, encoder: encode.Encoder) -> Shard:
    """Tokenize a piece into shard `index` of `folder`. The description comes last, so it vouches for the rest."""
    tally = reading.Tally()
    special = tokenize.special(encoder.tokenizer)
    parts: list[tuple[np.ndarray, ...]] = [(np.empty(0, np.uint32), np.empty(0, np.int64), np.empty(0, DOCUMENT))]
    parts += (_encode(block, encoder) for block in _blocks(reading.documents(piece, tally)))
    ids, lengths, documents = (np.concatenate(part) for part in zip(*parts, strict=True))
    arrays: dict[str, np.ndarray] = {
        "tokens": ids.astype(np.uint16 if special.vocab <= 1 << 16 else np.uint32),
        "sentences": lengths.astype(np.uint32),
        "documents": documents,
    }
    shard = Shard(
        source=source,
        documents=len(arrays["documents"]),
        sentences=len(arrays["sentences"]),
        tokens=len(arrays["tokens"]),
        unknown=int((arrays["tokens"] == special.unk).sum()),
        tally=asdict(tally),
        files={name(index, kind): _save(folder / name(index, kind), array) for kind, array in arrays.items()},
    )
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


def load(folder: Path, index: int, kind: str) -> np.ndarray:
    """One array of a shard, memory-mapped, as a plain array, which is much quicker to slice than a memmap."""
    mapped = np.load(folder / name(index, kind), mmap_mode="r", allow_pickle=False)
    return np.asarray(mapped)


def text_hash(text: str) -> int:
    """64 bits that ignore case, whitespace and ASCII punctuation, so that near copies are one document."""
    bare = "".join(text.casefold().split()).encode("utf-8", "replace").translate(None, _PUNCTUATION)
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
    return ids, lengths, records[records["tokens"] > 0]


def _save(path: Path, array: np.ndarray) -> rundir.FileDigest:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    content = buffer.getvalue()
    rundir.publish_bytes(path, content)
    return rundir.FileDigest(size=len(content), sha256=hashlib.sha256(content).hexdigest())
