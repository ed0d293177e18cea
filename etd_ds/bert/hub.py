"""Teachers of a model hub: a pinned commit's config, tokenizer and safetensors, and no other file."""

from __future__ import annotations

from pathlib import Path

import httpx
import huggingface_hub
from huggingface_hub import errors as hub_errors

from etd_ds.contract import errors, teachers

_SMALL = ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
_WEIGHTS = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]


def pin(hub: teachers.Hub) -> teachers.Hub:
    """The same repository with its commit known; asks the hub only when the reference names none."""
    if hub.commit is not None:
        return hub
    with _Asking(hub):
        return teachers.Hub(hub.repo, huggingface_hub.HfApi().model_info(hub.repo).sha)
    raise AssertionError("unreachable")


def fetch(hub: teachers.Hub, cache: Path, *, weights: bool) -> Path:
    """The snapshot folder of a pinned repository, its weights too if asked. Raises `TeacherError`."""
    assert hub.commit is not None
    with _Asking(hub):
        patterns = _SMALL + (_WEIGHTS if weights else [])
        folder = huggingface_hub.snapshot_download(
            hub.repo, revision=hub.commit, cache_dir=cache / "hub", allow_patterns=patterns
        )
    return Path(folder)


def has_safetensors(hub: teachers.Hub) -> bool:
    """Whether the pinned commit holds weights that we read."""
    with _Asking(hub):
        names = huggingface_hub.HfApi().list_repo_files(hub.repo, revision=hub.commit)
    return any(name in _WEIGHTS for name in names)


class _Asking:
    """Turns what huggingface_hub raises into a `TeacherError` that says which of the two to mend."""

    def __init__(self, hub: teachers.Hub) -> None:
        self.name = hub.repo + (f"@{hub.commit}" if hub.commit else "")

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        known = (hub_errors.RepositoryNotFoundError, hub_errors.RevisionNotFoundError, hub_errors.HFValidationError)
        if isinstance(error, known):
            raise errors.TeacherError(
                f"teacher: the model hub has no {self.name} (or it is private, and no token gives access)",
                got=self.name,
            ) from error
        if isinstance(error, (hub_errors.HfHubHTTPError, hub_errors.LocalEntryNotFoundError, httpx.HTTPError, OSError)):
            raise errors.TeacherError(
                f"teacher: {self.name} could not be fetched from the model hub ({type(error).__name__}); "
                "check the network, or use 'embedded' or a local folder",
                got=self.name,
            ) from error
