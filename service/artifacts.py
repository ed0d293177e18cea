"""Published files as byte strings with a length and a strong tag: whole, in ranges, or together as one tar."""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from etd_ds.contract import rundir

_CHUNK = 1 << 20
_BLOCK = 512
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class Readable(Protocol):
    """Bytes that are kept elsewhere."""

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` up to, not including, `end`. Raises `OSError`."""


Piece: TypeAlias = bytes | Path | Readable
Find: TypeAlias = Callable[[Path, rundir.FileDigest], Piece]
"""Where a published file can be read, by the path that it was published under."""


@dataclass(frozen=True)
class Content:
    """Bytes that never change under their `etag`: literal pieces and whole files, one after the other."""

    pieces: tuple[Piece, ...]
    sizes: tuple[int, ...]
    etag: str
    """Strong: the sha256 of the content, or of what determines it; without quotes."""

    @property
    def size(self) -> int:
        return sum(self.sizes)

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` up to, not including, `end`. Raises `OSError` if a file is shorter than it was."""
        at = 0
        for piece, size in zip(self.pieces, self.sizes, strict=True):
            low, high = max(start - at, 0), min(end - at, size)
            at += size
            if low >= high:
                continue
            if isinstance(piece, bytes):
                yield piece[low:high]
                continue
            if not isinstance(piece, Path):
                yield from piece.read(low, high)
                continue
            with piece.open("rb") as file:
                file.seek(low)
                while low < high:
                    chunk = file.read(min(_CHUNK, high - low))
                    if not chunk:
                        raise OSError(f"{piece}: shorter than when it was published")
                    low += len(chunk)
                    yield chunk


def as_it_lies(path: Path, _: rundir.FileDigest) -> Piece:
    """`Find` for files that are where they were published."""
    return path


def file(folder: Path, name: str, files: Mapping[str, rundir.FileDigest], find: Find = as_it_lies) -> Content | None:
    """One published file. `name` is looked up, never joined: what was not published does not exist."""
    digest = files.get(name)
    if digest is None or "/" in name or name.startswith("."):
        return None
    return Content((find(folder / name, digest),), (digest.size,), digest.sha256)


def tar(folder: Path, files: Mapping[str, rundir.FileDigest], find: Find = as_it_lies) -> Content:
    """All published files as an uncompressed tar that depends on nothing but their names and contents."""
    pieces: list[Piece] = []
    sizes: list[int] = []
    tag = hashlib.sha256()
    for name, digest in sorted(files.items()):
        header = tarfile.TarInfo(name)
        header.size, header.mode = digest.size, 0o644
        padding = bytes(-digest.size % _BLOCK)
        head = header.tobuf(tarfile.PAX_FORMAT)
        pieces += [head, find(folder / name, digest), padding]
        sizes += [len(head), digest.size, len(padding)]
        tag.update(f"{name}\0{digest.sha256}\0".encode())
    pieces.append(bytes(2 * _BLOCK))
    sizes.append(2 * _BLOCK)
    return Content(tuple(pieces), tuple(sizes), tag.hexdigest())


def wanted_range(header: str, size: int) -> tuple[int, int] | None:
    """(start, end) of a single `bytes=` range, `None` when the header is to be ignored (RFC 9110 §14.2).

    Raises `ValueError` when the range lies outside the content (416).
    """
    match = _RANGE.fullmatch(header.replace(" ", ""))
    if match is None or header.endswith("=-"):
        return None
    first, last = match.groups()
    if first == "":
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= end:
        raise ValueError(f"range {header!r} lies outside of {size} bytes")
    return start, end


def names_tag(header: str, etag: str) -> bool:
    """Whether an `If-None-Match` header names this tag."""
    return header.strip() == "*" or any(one.strip().removeprefix("W/") == f'"{etag}"' for one in header.split(","))
