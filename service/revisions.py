"""A job's students as the revisions of a repository: names and commits, each with the files that it holds."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

from etd_ds.contract import rundir

MAIN = "main"
"""The distilled student."""
INIT = "init"
"""The extracted student, before distillation."""

_LARGE = 10 << 20


@dataclass(frozen=True)
class Revision:
    """One published folder; its commit is 40 hex digits that its content determines."""

    commit: str
    folder: Path
    files: Mapping[str, rundir.FileDigest]
    date: str
    """When it was published, ISO 8601 with a Z, as the clients want it."""

    def is_large(self, name: str) -> bool:
        """Whether a hub would keep the file apart from git, under its sha256."""
        return name.endswith(".safetensors") or self.files[name].size > _LARGE

    def object_id(self, name: str) -> str:
        """git's name of the file's content; of large files, of nothing that exists, but as stable."""
        digest = self.files[name]
        if self.is_large(name):
            return hashlib.sha1(digest.sha256.encode(), usedforsecurity=False).hexdigest()
        return _git_blob(self.folder / name, digest.sha256)


def of_run(run: rundir.RunDir) -> dict[str, Revision]:
    """Every revision that there is now, by name."""
    found = listed(run)
    if run.plan.exists():
        found[INIT] = _revision(run.init, _digests(run.init, run.plan.stat().st_mtime_ns), run.plan)
    return found


def listed(run: rundir.RunDir) -> dict[str, Revision]:
    """Those whose files' hashes are listed: all but the extracted student."""
    found: dict[str, Revision] = {}
    result = run.read_result()
    if result is not None:
        found[MAIN] = _revision(run.student, result.files, run.result)
    for manifest in sorted(run.revisions.glob("*.json")):
        made = rundir.read_revision(manifest)
        found[manifest.stem] = _revision(run.revisions / manifest.stem, made.files, manifest)
    return found


def kept_step(run: rundir.RunDir, revision: str) -> int | None:
    """The step of a revision such as `step-1000`, if a checkpoint of it is kept."""
    match = re.fullmatch(r"step-([0-9]{1,12})", revision)
    if match is None or not run.checkpoints.is_dir():
        return None
    name = re.compile(f"step-0*{int(match[1])}")
    return int(match[1]) if any(name.fullmatch(path.name) for path in run.checkpoints.iterdir()) else None


def _revision(folder: Path, files: Mapping[str, rundir.FileDigest], published: Path) -> Revision:
    text = "\n".join(f"{name} {digest.sha256}" for name, digest in sorted(files.items()))
    commit = hashlib.sha1(f"{published}\n{text}".encode(), usedforsecurity=False).hexdigest()
    date = datetime.fromtimestamp(published.stat().st_mtime, timezone.utc)
    return Revision(commit, folder, files, date.isoformat(timespec="milliseconds").replace("+00:00", "Z"))


@lru_cache(maxsize=1024)
def _digests(folder: Path, _published: int) -> dict[str, rundir.FileDigest]:
    """The extracted student has no list of hashes, so they are made once."""
    return {path.name: rundir.digest(path) for path in sorted(folder.iterdir()) if path.is_file()}


@lru_cache(maxsize=8192)
def _git_blob(path: Path, _sha256: str) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
