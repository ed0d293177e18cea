"""The ends of files that grow: last log lines, and the newest events of a run, without reading it all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from etd_ds.contract import events

_UNSAFE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PIECE = 64 * 1024


def last_lines(path: Path, count: int = 20, *, limit: int = _PIECE) -> list[str]:
    """The last `count` lines among the last `limit` bytes, without control characters; [] if there is no file.

    Of a progress bar, which overwrites its line, only the newest state counts.
    """
    return _shown(_end(path, limit)[0], count)


def whole_lines(path: Path, count: int, *, limit: int = _PIECE) -> tuple[list[str], int]:
    """As `last_lines`, but without a last one that is not finished: (lines, the offset behind them)."""
    piece, end = _end(path, limit)
    finished = piece.rfind(b"\n") + 1
    return _shown(piece[:finished], count), end - len(piece) + finished


def _shown(piece: bytes, count: int) -> list[str]:
    lines = (shown(line) for line in piece.decode(errors="replace").split("\n"))
    found = [line for line in lines if line]
    return found[-count:] if count else []


def shown(line: str) -> str:
    """A line as a terminal would show it at last."""
    return clean(line.rstrip("\r").rsplit("\r", 1)[-1])


def clean(line: str) -> str:
    """A line without terminal escapes and control characters, at most 2,000 characters."""
    return _UNSAFE.sub("", line).rstrip()[:2000]


def newest(path: Path) -> Iterator[events.Event]:
    """Events from the last one backwards, among the last 64 KiB of the file."""
    piece, _ = _end(path, _PIECE)
    whole = piece[: piece.rfind(b"\n") + 1].split(b"\n")
    for raw in reversed(whole):
        if raw:
            try:
                yield events.parse(raw.decode(errors="replace"))
            except ValueError:  # the first line of the piece is cut, and a killed trainer may leave a torn one
                continue


def last_step(path: Path) -> events.Step | events.Attempt | None:
    """The newest step, or the attempt that has not made one yet."""
    return next((event for event in newest(path) if isinstance(event, events.Step | events.Attempt)), None)


def progress(path: Path) -> dict[str, object] | None:
    """The newest numbers of a run's events, or `None` before there are any."""
    found = last_step(path)
    if isinstance(found, events.Step):
        return found.model_dump(exclude={"type", "grad_norm", "loss_scale"})
    return None if found is None else {"step": found.step, "steps": found.steps}


def extraction(path: Path) -> dict[str, object] | None:
    """How far the extraction is, or `None` before it said so."""
    found = next((event for event in newest(path) if isinstance(event, events.Progress)), None)
    return None if found is None else found.model_dump(exclude={"type"})


def began(path: Path) -> float | None:
    """When the newest attempt began, as far as it is still known."""
    return next((event.time for event in newest(path) if isinstance(event, events.Attempt)), None)


def last_end(path: Path) -> events.End | None:
    """How the last attempt said it ended, if it was able to."""
    for event in newest(path):
        if isinstance(event, events.End):
            return event
        if isinstance(event, events.Attempt):
            return None
    return None


def _end(path: Path, limit: int) -> tuple[bytes, int]:
    """The last bytes of a file, and the offset behind them."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - limit))
            return file.read(min(limit, size)), size
    except FileNotFoundError:
        return b"", 0
