"""Pieces into shards, in this process or in several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from etd_ds.contract import errors, launch
from etd_ds.data import encode, shards, sources, tokenize

_PROCESS_BYTES = 32 << 20
"""Input for which a further process is worth its start."""


class Task(NamedTuple):
    """Make shard number `shard` from a piece of source number `source`."""

    shard: int
    source: int
    piece: sources.Piece


def processes(size: int | None) -> int:
    """How many processes pay for `size` bytes of input (none: nobody knows), on the cores that this one may use."""
    cores = len(os.sched_getaffinity(0))
    return cores if size is None else max(1, min(cores, size // _PROCESS_BYTES))


def run(tasks: Sequence[Task], folder: Path, tokenizer: Path, workers: int) -> Iterator[shards.Shard]:
    """The shards of `folder` in the order of their tasks; those that are there and whole are taken as they are.

    `tokenizer` is a tokenizer.json. Raises `CorpusError`; what is finished by then stays.
    """
    if workers == 1:
        encoder = encode.Encoder(tokenize.open_file(tokenizer))
        for task in tasks:
            yield shards.read(folder, task.shard) or shards.write(folder, *task, encoder)
        return
    with closing(_Crew(folder, tokenizer)) as crew, ThreadPoolExecutor(workers) as threads:
        results = [threads.submit(crew.do, task) for task in tasks]
        try:
            for result in results:
                yield result.result()
        finally:
            for result in results:
                result.cancel()


class _Crew:
    """One process for each thread that asks: tasks go in and shards come out as lines of JSON."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self._command = [sys.executable, "-m", "etd_ds.data.tokenizing_process", str(folder), str(tokenizer)]
        path = os.pathsep.join(filter(None, [str(launch.REPOSITORY), os.environ.get("PYTHONPATH")]))
        self._environment = {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
        self._folder = folder
        self._mine = threading.local()
        self._all: list[subprocess.Popen[str]] = []

    def do(self, task: Task) -> shards.Shard:
        if (shard := shards.read(self._folder, task.shard)) is not None:
            return shard
        process: subprocess.Popen[str] | None = getattr(self._mine, "process", None)
        if process is None:
            process = self._mine.process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=self._environment,
            )
            self._all.append(process)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps([task.shard, task.source, asdict(task.piece)]) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass
        line = process.stdout.readline()
        if not line:
            raise errors.CorpusError(
                f"corpus: a tokenizing process ended with code {process.wait()} at {task.piece.path}; what is finished "
                "is kept, and the same command goes on from there"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise errors.CorpusError(answer["error"])
        return shards.Shard.model_validate(answer)

    def close(self) -> None:
        """End the processes, which have nothing in hand any more."""
        for process in self._all:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # of one that died with a task unread
                process.stdin.close()
        for process in self._all:
            process.wait()
