"""A piece of the input into documents. What cannot be used is counted, and what cannot be read is an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from etd_ds.contract import errors
from etd_ds.data import sources

DOCUMENT_CHARS = 32 << 10
"""A longer document goes on as a new one, so that no text, however long, has to fit in memory or in one split."""
_TEXT_LINE_BYTES = 64 << 10  # a longer line of text is read in parts, cut between words
_JSON_LINE_BYTES = 16 << 20  # a longer line of JSON is left out


@dataclass
class Tally:
    """What reading met on its way; all counts."""

    bytes: int = 0
    """Bytes of text, UTF-8."""
    documents_cut: int = 0
    """Documents longer than `DOCUMENT_CHARS`, each counted as several."""
    undecodable: int = 0
    """Places that are not UTF-8; each became U+FFFD."""
    lines_cut: int = 0
    """Lines of text longer than 64 KiB, read in parts."""
    lines_skipped: int = 0
    """JSON lines without a string "text", not JSON at all, or longer than 16 MiB."""

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def documents(piece: sources.Piece, tally: Tally) -> Iterator[str]:
    """Documents of a piece in order, none empty; paragraphs are lines. Raises `CorpusError` if reading fails."""
    texts = _READERS[piece.kind](piece, tally)
    while True:
        try:
            text = next(texts, None)
        except OSError as error:
            raise errors.CorpusError(
                f"corpus: reading {piece.path} failed half-way: {error.strerror or error}", got=piece.path
            ) from None
        if text is None:
            return
        for part in _parts(_valid(text, tally), tally):
            if part.strip():
                tally.bytes += len(part.encode())
                yield part


def _valid(text: str, tally: Tally) -> str:
    # JSON can spell half of a surrogate pair, which is no character.
    try:
        text.encode()
    except UnicodeEncodeError:
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        tally.undecodable += whole.count("\ufffd") - text.count("\ufffd")
        return whole
    return text


def _parts(text: str, tally: Tally) -> Iterator[str]:
    if len(text) <= 2 * DOCUMENT_CHARS:
        yield text
        return
    tally.documents_cut += 1
    start = 0
    while len(text) - start > 2 * DOCUMENT_CHARS:
        limit = start + DOCUMENT_CHARS
        stop = max(text.rfind("\n", start, limit), text.rfind(". ", start, limit) + 1)
        if stop <= start:
            stop = text.rfind(" ", start, limit)
        stop = limit if stop <= start else stop
        yield text[start:stop]
        start = stop
    yield text[start:]


def _embedded(piece: sources.Piece, tally: Tally) -> Iterator[str]:
    for entry in json.loads(sources.read_embedded(piece.path)).values():
        yield entry["extract"]


def _text(piece: sources.Piece, tally: Tally) -> Iterator[str]:
    paragraphs: list[str] = []
    size = 0
    for raw in _text_lines(piece, tally):
        line = _decode(raw, tally).strip()
        if line:
            paragraphs.append(line)
            size += len(line)
        if size and (not line or size >= DOCUMENT_CHARS):
            tally.documents_cut += bool(line)
            yield "\n".join(paragraphs)
            paragraphs, size = [], 0
    if paragraphs:
        yield "\n".join(paragraphs)


def _text_lines(piece: sources.Piece, tally: Tally) -> Iterator[bytes]:
    with Path(piece.path).open("rb") as file:
        position, within = file.seek(piece.start), False
        while position < piece.stop:
            wanted = min(_TEXT_LINE_BYTES, piece.stop - position)
            raw = file.readline(wanted)
            if len(raw) < wanted and not raw.endswith(b"\n"):
                raise OSError("the file became shorter while it was read")
            whole = raw.endswith(b"\n") or position + len(raw) == piece.stop
            if not whole:
                raw = raw[: sources.word_border(raw)]
                file.seek(position + len(raw))
                tally.lines_cut += not within
            within = not whole
            position += len(raw)
            yield raw


def _jsonl(piece: sources.Piece, tally: Tally) -> Iterator[str]:
    paragraphs: list[str] = []
    size, current = 0, None
    for raw in _json_lines(piece, tally):
        row = _row(raw, tally)
        if row is None:
            continue
        document = row.get("doc")
        same = document is not None and document == current
        if paragraphs and (not same or size >= DOCUMENT_CHARS):
            tally.documents_cut += same
            yield "\n".join(paragraphs)
            paragraphs, size = [], 0
        current = document
        paragraphs.append(row["text"])
        size += len(row["text"])
    if paragraphs:
        yield "\n".join(paragraphs)


def _json_lines(piece: sources.Piece, tally: Tally) -> Iterator[bytes]:
    with Path(piece.path).open("rb") as file:
        position = file.seek(max(piece.start - 1, 0))
        if piece.start:
            # The line before this piece, of which it may hold a part, belongs to the piece in which it begins.
            position += _skip_line(file)
        while position < piece.stop:
            raw = file.readline(_JSON_LINE_BYTES)
            if not raw:
                raise OSError("the file became shorter while it was read")
            position += len(raw)
            if len(raw) == _JSON_LINE_BYTES and not raw.endswith(b"\n"):
                tally.lines_skipped += 1
                position += _skip_line(file)
            else:
                yield raw


def _skip_line(file: BinaryIO) -> int:
    skipped = 0
    while raw := file.readline(_JSON_LINE_BYTES):
        skipped += len(raw)
        if raw.endswith(b"\n"):
            break
    return skipped


def _row(raw: bytes, tally: Tally) -> dict[str, str] | None:
    text = _decode(raw, tally)
    if not text.strip():
        return None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        row = None
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return row
    tally.lines_skipped += 1
    return None


def _decode(raw: bytes, tally: Tally) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("utf-8", "replace")
        tally.undecodable += text.count("\ufffd") - raw.count("\ufffd".encode())
        return text


def _parquet(piece: sources.Piece, tally: Tally) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet, types

    try:
        with parquet.ParquetFile(piece.path) as file:
            if "text" not in file.schema_arrow.names:
                raise errors.CorpusError(
                    f"corpus: wanted a column 'text' in {piece.path}, got {', '.join(file.schema_arrow.names)}"
                )
            groups = list(range(piece.start, piece.stop))
            for batch in file.iter_batches(batch_size=256, row_groups=groups, columns=["text"]):
                column = batch.column(0)
                if types.is_dictionary(column.type):
                    column = column.dictionary_decode()
                if types.is_string(column.type) or types.is_large_string(column.type):
                    # Nobody has looked yet whether they are UTF-8.
                    raws = column.cast(pyarrow.large_binary()).to_pylist()
                    yield from (_decode(raw, tally) for raw in raws if raw is not None)
                else:
                    yield from (text for text in column.to_pylist() if isinstance(text, str))
    except pyarrow.ArrowException as error:
        raise errors.CorpusError(f"corpus: {piece.path} is damaged: {error}", got=piece.path) from None


def _hub(piece: sources.Piece, tally: Tally) -> Iterator[str]:
    rows = iter(sources.hub_stream(piece.path, piece.config, piece.revision).shard(piece.stop, piece.start))
    while True:
        try:
            row = next(rows, None)
        except Exception as error:  # of the library, of its HTTP client, of its file formats
            raise errors.CorpusError(
                f"corpus: the hub data set {piece.path} broke off ({type(error).__name__}); what is finished is kept, "
                "and the same command goes on from there"
            ) from error
        if row is None:
            return
        if "text" not in row:
            raise errors.CorpusError(f"corpus: wanted a column 'text' in {piece.path}, got {', '.join(row)}")
        if isinstance(row["text"], str):
            yield row["text"]


_READERS = {"embedded": _embedded, "text": _text, "jsonl": _jsonl, "parquet": _parquet, "hub": _hub}
