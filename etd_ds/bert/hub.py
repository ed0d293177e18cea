"""Teachers of a model hub: a pinned commit's config, tokenizer and safetensors, and no other file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors as hub_errors

from etd_ds.contract import errors, teachers

_SMALL = ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
_WEIGHTS = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]


def pin(hub: teachers.Hub) -> teachers.Hub:
    """The same repository with its commit known; asks the hub only when the reference names none."""
    if hub.commit is not None:
        return hub
    with _asking(hub):
        return teachers.Hub(hub.repo, huggingface_hub.HfApi().model_info(hub.repo).sha)


def fetch(hub: teachers.Hub, cache: Path, *, weights: bool) -> Path:
    """The snapshot folder of a pinned repository, its weights too if asked. Raises `TeacherError`.

    A commit never changes, so the network is used only for what the cache lacks.
    """
    assert hub.commit is not None
    with suppress(hub_errors.LocalEntryNotFoundError):
        folder = _snapshot(hub, cache, weights, local_files_only=True)
        if (folder / "config.json").exists() and (not weights or has_weights(folder)):
            return folder
    with _asking(hub):
        # Unlike a download, this fails at once when there is no network or no such repository.
        huggingface_hub.HfApi().model_info(hub.repo, revision=hub.commit)
        return _snapshot(hub, cache, weights, local_files_only=False)


def has_weights(folder: Path) -> bool:
    """Whether a snapshot holds its safetensors whole, in one file or in several."""
    if (folder / "model.safetensors").exists():
        return True
    try:
        names = json.loads((folder / "model.safetensors.index.json").read_bytes())["weight_map"].values()
        return bool(names) and all((folder / name).is_file() for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # whoever reads the weights says what is wrong with them


def _snapshot(hub: teachers.Hub, cache: Path, weights: bool, *, local_files_only: bool) -> Path:
    patterns = _SMALL + (_WEIGHTS if weights else [])
    folder = huggingface_hub.snapshot_download(
        hub.repo,
        revision=hub.commit,
        cache_dir=cache / "hub",
        allow_patterns=patterns,
        local_files_only=local_files_only,
    )
    return Path(folder)


def has_safetensors(hub: teachers.Hub) -> bool:
    """Whether the pinned commit holds weights that we read."""
    with _asking(hub):
        names = huggingface_hub.HfApi().list_repo_files(hub.repo, revision=hub.commit)
    return any(name in _WEIGHTS for name in names)


_UNKNOWN = (hub_errors.RepositoryNotFoundError, hub_errors.RevisionNotFoundError, hub_errors.HFValidationError)

# HTTPError is that of the client inside huggingface_hub: httpx or httpx2, by version.
_UNREACHABLE = (
    hub_errors.HfHubHTTPError,
    hub_errors.LocalEntryNotFoundError,
    hub_errors.HTTPError,  # type: ignore[attr-defined]
    OSError,
)


@contextmanager
def _asking(hub: teachers.Hub) -> Iterator[None]:
    """Turns what huggingface_hub raises into a `TeacherError` that says what to mend: the name or the network."""
    name = hub.repo + (f"@{hub.commit}" if hub.commit else "")
    try:
        yield
    except _UNKNOWN as error:
        raise errors.TeacherError(
            f"teacher: the model hub has no {name} (or it is private, and no token gives access), nor is it a "
            "folder here",
            got=name,
        ) from error
    except _UNREACHABLE as error:
        raise errors.TeacherError(
            f"teacher: {name} is no folder here, and could not be fetched from the model hub ({type(error).__name__}); "
            "check the name and the network, or use 'embedded' or a local folder",
            got=name,
        ) from error
