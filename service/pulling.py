"""Downloads in pieces, several at once: what was cut off goes on, and a file has its name only with its sha256."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import httpx

from etd_ds.contract import rundir

PIECE = 16 << 20
_TRIES = 60
_WAIT_SECONDS = 1.0
_BUSY = frozenset((429, 502, 503, 504))


class Damaged(Exception):
    """What arrived twice has not the sha256 that was published."""


class Unanswered(Exception):
    """Nobody answered any more, however often it was tried; what has arrived stays, for the next time."""


class Part:
    """A file on its way: `.NAME.part`, and in `.NAME.pieces` which of its pieces have arrived."""

    def __init__(self, target: Path, digest: rundir.FileDigest) -> None:
        self.target = target
        self.digest = digest
        self._content = target.with_name(f".{target.name}.part")
        self._pieces = target.with_name(f".{target.name}.pieces")
        self._head = f"{digest.sha256} {PIECE}"
        self._lock = threading.Lock()
        self._missing: set[int] = set()

    def open(self) -> list[int]:
        """Where the pieces begin that have not arrived yet."""
        there: set[int] = set()
        with suppress(OSError, ValueError):
            head, *lines = self._pieces.read_text().split("\n")[:-1]  # the last line may be cut
            if head == self._head and self._content.stat().st_size == self.digest.size:
                there = {int(line) for line in lines}
        if not there:
            self.forget()
            self._pieces.write_text(self._head + "\n")
            with self._content.open("wb") as out:
                out.truncate(self.digest.size)
        self._missing = set(range(0, self.digest.size, PIECE)) - there
        return sorted(self._missing)

    def write(self, at: int, chunk: bytes) -> None:
        with self._content.open("r+b") as out:
            out.seek(at)
            out.write(chunk)

    def arrived(self, start: int) -> bool:
        """Note that the piece from `start` on is there; whether it was the last one."""
        with self._lock:
            with self._pieces.open("a") as out:
                out.write(f"{start}\n")
            self._missing.discard(start)
            return not self._missing

    def finish(self) -> bool:
        """Give the file its name if it is what was published; else forget it, and say so."""
        if rundir.digest(self._content) != self.digest:
            self.forget()
            return False
        rundir.fsync_path(self._content)
        self._content.replace(self.target)
        self._pieces.unlink()
        return True

    def forget(self) -> None:
        self._content.unlink(missing_ok=True)
        self._pieces.unlink(missing_ok=True)


class Pull:
    """One download of several files. `check` raises for an answer that is an error and stays one."""

    def __init__(
        self,
        http: httpx.Client,
        check: Callable[[httpx.Response], httpx.Response],
        *,
        connections: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._http = http
        self._check = check
        self._connections = connections
        self._progress = progress
        self._done = self._total = 0
        self._counting = threading.Lock()
        self._over = threading.Event()

    def run(self, folder: Path, files: Mapping[str, tuple[str, rundir.FileDigest]]) -> None:
        """Bring these files, by name: (path on the server, digest). Raises `Damaged`, `Unanswered`, and as `check`."""
        self._total = sum(digest.size for _, digest in files.values())
        wanted = []
        for name, (path, digest) in sorted(files.items()):
            if (folder / name).is_file() and rundir.digest(folder / name) == digest:
                self._count(digest.size)
            else:
                wanted.append((path, Part(folder / name, digest)))
        again = self._bring(wanted)
        damaged = self._bring(again)
        if damaged:
            names = ", ".join(part.target.name for _, part in damaged)
            raise Damaged(f"{names}: what arrived has not the sha256 that was published, twice")

    def _bring(self, wanted: Iterable[tuple[str, Part]]) -> list[tuple[str, Part]]:
        """Fetch what is missing of these; those that were not what was published."""
        damaged: list[tuple[str, Part]] = []

        def one(path: str, part: Part, start: int) -> None:
            self._fetch(path, part, start)
            if part.arrived(start) and not part.finish():
                self._count(-part.digest.size)
                damaged.append((path, part))

        with ThreadPoolExecutor(self._connections) as pool:
            try:
                pieces = []
                for path, part in wanted:
                    missing = part.open()
                    self._count(part.digest.size - sum(min(PIECE, part.digest.size - start) for start in missing))
                    pieces += [pool.submit(one, path, part, start) for start in missing]
                    if not missing and not part.finish():
                        damaged.append((path, part))
                done, _ = wait(pieces, return_when=FIRST_EXCEPTION)
                for piece in done:
                    piece.result()
            except BaseException:
                self._over.set()  # the others stop at their next chunk
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return damaged

    def _fetch(self, path: str, part: Part, start: int) -> None:
        """Bring one piece, over as many connections as it takes."""
        at, end = start, min(start + PIECE, part.digest.size)
        failures = 0
        while at < end:
            before = at
            headers = {"Range": f"bytes={at}-{end - 1}", "Accept-Encoding": "identity"}
            with suppress(httpx.TransportError), self._http.stream(
                "GET", path, headers=headers, follow_redirects=True
            ) as answer:  # fmt: skip
                if answer.status_code not in _BUSY:
                    if answer.is_error:
                        answer.read()
                        self._check(answer)
                    if answer.status_code != 206 and (at, end) != (0, part.digest.size):
                        raise Unanswered(f"{part.target.name}: the service does not send parts of files")
                    for chunk in answer.iter_bytes(1 << 20):
                        if self._over.is_set():
                            return
                        kept = chunk[: end - at]
                        part.write(at, kept)
                        at += len(kept)
                        self._count(len(kept))
            failures = 0 if at > before else failures + 1
            if failures > _TRIES:
                raise Unanswered(f"{self._http.base_url} does not answer any more; the same command continues")
            if failures and self._over.wait(_WAIT_SECONDS):
                return

    def _count(self, size: int) -> None:
        with self._counting:
            self._done += size
            if self._progress is not None:
                self._progress(self._done, self._total)
