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
    tokens = [np.empty(0, np.uint16 if special.vocab <= 1 << 16 else np.uint32)]
    sentences = [np.empty(0, np.uint32)]
    documents = [np.empty(0, DOCUMENT)]
    for block in _blocks(reading.documents(piece, tally)):
        ids, lengths, records = _encode(block, encoder)
        tokens.append(np.array(ids, tokens[0].dtype))
        sentences.append(np.array(lengths, np.uint32))
        documents.append(np.array(records, DOCUMENT))
    arrays = {kind: np.concatenate(parts) for kind, parts in _kinds(tokens, sentences, documents)}
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
    """One array of a shard, memory-mapped."""
    array: np.ndarray = np.load(folder / name(index, kind), mmap_mode="r", allow_pickle=False)
    return array


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


def _kinds(*lists: list[np.ndarray]) -> Iterator[tuple[str, list[np.ndarray]]]:
    return zip(("tokens", "sentences", "documents"), lists, strict=True)


def _encode(block: list[str], encoder: encode.Encoder) -> tuple[list[int], list[int], list[tuple[int, int, int]]]:
    # Token ids of all sentences, their lengths, and the records of the documents that hold any token.
    split = [splitting.sentences(document) for document in block]
    encoded = iter(encoder([sentence for sentences in split for sentence in sentences]))
    ids: list[int] = []
    lengths: list[int] = []
    records = []
    for document, sentences in zip(block, split, strict=True):
        before, first = len(ids), len(lengths)
        for sentence in itertools.islice(encoded, len(sentences)):
            if sentence:
                ids += sentence
                lengths.append(len(sentence))
        if len(ids) > before:
            records.append((text_hash(document), len(lengths) - first, len(ids) - before))
    return ids, lengths, records


def _save(path: Path, array: np.ndarray) -> rundir.FileDigest:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    content = buffer.getvalue()
    rundir.publish_bytes(path, content)
    return rundir.FileDigest(size=len(content), sha256=hashlib.sha256(content).hexdigest())
