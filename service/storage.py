"""Where published files are kept for those who fetch them: the run folders alone, or S3-compatible storage as well."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from etd_ds.contract import errors, rundir
from service import revisions
from service.artifacts import Piece

log = logging.getLogger("etd_jobs")

RECORD = "published.json"
"""In a run folder: the `Publication` that the bucket holds of it. A copy of the bucket's `manifest.json`."""

GONE = "gone-"
"""Before a job's id: its folder after it was deleted, until everything is removed."""

_CHUNK = 8 << 20
_PARTS = 2
"""Chunks of one file that are in memory at once on their way to the bucket."""
_WEEK = 604_800
_DIGESTS = "digests.json"
"""In a checkpoint's folder: size and sha256 of its files, as the trainer wrote them."""
_LISTED = TypeAdapter(dict[str, rundir.FileDigest])


class Away(OSError):
    """The storage cannot be reached, or refuses; what was asked for may be asked again."""


class Publication(BaseModel):
    """Files of a run folder that are in the bucket, by their path in it. Written when all of them are there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, rundir.FileDigest]


class Storage(Protocol):
    """What the service needs of the place where published files are."""

    def piece(self, path: Path, digest: rundir.FileDigest) -> Piece:
        """A published file of a run folder, from wherever it can be read."""

    def address(self, path: Path, kind: str) -> str | None:
        """Where a client may fetch the file itself for a while; none: it is to be sent."""

    def remove(self, folder: Path) -> None:
        """Remove a run folder that was deleted, and all that is kept of it. What cannot be removed now stays there."""


class Folder:
    """The data folder is all there is."""

    def piece(self, path: Path, digest: rundir.FileDigest) -> Piece:
        return path

    def address(self, path: Path, kind: str) -> str | None:
        return None

    def remove(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)


class Bucket:
    """Also `s3://BUCKET/PREFIX`: `ID/objects/SHA256` for each published file of job ID, and `ID/manifest.json`.

    Objects are named by their content and put whole or not at all, and the manifest comes last: whatever is cut off
    is simply done again, and what is half there is never seen. Keys come from the environment or wherever else
    botocore looks for them. Used by many threads.
    """

    def __init__(self, where: str, *, expires: int = 0) -> None:
        """`expires`: for how many seconds addresses that clients are sent to are valid; 0: files are sent from here."""
        parts = urlsplit(where)
        if parts.scheme != "s3" or not parts.netloc or parts.username or parts.query or parts.fragment:
            wanted = "s3://BUCKET or s3://BUCKET/PREFIX"
            raise errors.EtdError(f"--artifacts: wanted {wanted}, got {parts.scheme or 'no s3'}://…", wanted=wanted)
        if not 0 <= expires <= _WEEK:
            wanted = f"0 to {_WEEK} seconds, which is as long as S3 allows"
            raise errors.EtdError(f"--redirect: wanted {wanted}, got {expires}", wanted=wanted, got=expires)
        try:
            import s3fs
        except ImportError:
            cure = "pip install 'etd-ds[s3]'"
            raise errors.EtdError(f"--artifacts: s3fs is not installed; {cure}", wanted=cure) from None
        self._root = f"{parts.netloc}{parts.path}".rstrip("/")
        self._expires = expires
        # what a checkpoint weighs is sent in parts; small answers come within seconds or never
        limits = {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 1}}
        self._s3: Any = s3fs.S3FileSystem(
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={**limits, "signature_version": "s3v4"},
        )
        self._s3.retries = 2

    # ---- for routes

    def piece(self, path: Path, digest: rundir.FileDigest) -> Piece:
        return path if path.exists() else _Object(self, self._object(_run_of(path).name, digest.sha256))

    def address(self, path: Path, kind: str) -> str | None:
        if not self._expires:
            return None
        run = _run_of(path)
        digest = _record(run).get(str(path.relative_to(run)))
        if digest is None:
            return None
        named = f'attachment; filename="{path.name}"'
        try:
            with _reaching():
                url: str = self._s3.url(
                    self._object(run.name, digest.sha256),
                    expires=self._expires,
                    ResponseContentDisposition=named,
                    ResponseContentType=kind,
                )
        except Away:
            return None
        return url

    def remove(self, folder: Path) -> None:
        try:
            with _reaching():
                self._forget(self._keys(folder.name.removeprefix(GONE)))
        except Away as away:
            log.warning("%s cannot be removed from the bucket now: %s", folder.name, away)
        else:
            shutil.rmtree(folder, ignore_errors=True)

    # ---- for the publisher

    def publish(self, run: rundir.RunDir, *, settled: bool) -> bool:
        """Bring what the run has published to the bucket, and forget what it has removed; whether there was news.

        `settled`: nothing trains in the folder now, so events alone are news too. Raises `Away` when cut off, `OSError`
        when something was replaced meanwhile; the next call does what is left.
        """
        job_id, known = run.root.name, _record(run.root)
        found, changing = _published(run, known), _changing(run)
        as_before = {**found, **{name: known[name] for name in changing.keys() & known.keys()}} == known
        grown = settled and any(known[name].size != path.stat().st_size for name, path in changing.items() if as_before)
        if as_before and not changing.keys() - known.keys() and not grown:
            return False
        found |= {name: rundir.digest(path) for name, path in changing.items()}
        with _reaching():
            try:
                self._bring(run, found)
            except FileNotFoundError:
                if run.root.exists():
                    raise
                self._forget(self._keys(job_id))  # the job was deleted meanwhile
                return False
        return True

    def _bring(self, run: rundir.RunDir, found: Mapping[str, rundir.FileDigest]) -> None:
        """Put what is missing of these files of a run, name them all, and remove what is not among them."""
        job_id = run.root.name
        there = self._keys(job_id)
        for name, digest in found.items():
            key = self._object(job_id, digest.sha256)
            if there.get(key) != digest.size:
                self._put(run.root / name, key, digest)
                there[key] = digest.size
        manifest = Publication(files=found).model_dump_json().encode()
        self._s3.pipe_file(self._manifest(job_id), manifest)
        _write_record(run.root, manifest)
        wanted = {self._object(job_id, one.sha256) for one in found.values()}
        self._forget(there.keys() - wanted - {self._manifest(job_id)})

    def restore(self, job_id: str, runs: Path, aside: Path) -> bool:
        """Bring a run folder back as it was last published; False if it never was. Raises `Away`, or `EtdError`."""
        try:
            with _reaching():
                manifest = self._s3.cat_file(self._manifest(job_id))
        except FileNotFoundError:
            return False
        made = Publication.model_validate_json(manifest)
        shutil.rmtree(aside, ignore_errors=True)
        for name, digest in made.files.items():
            target = aside / name
            if not target.resolve().is_relative_to(aside.resolve()):
                raise errors.EtdError(f"{job_id}: its manifest names {name!r}, which is outside of its folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            with _reaching():
                self._s3.get_file(self._object(job_id, digest.sha256), str(target))
            if rundir.digest(target) != digest:
                raise errors.EtdError(f"{job_id}: {name} came back from the bucket with another sha256 than it has")
        _write_record(aside, manifest)
        aside.rename(runs / job_id)
        rundir.fsync_path(runs)
        return True

    # ---- objects

    def read(self, key: str, start: int, end: int) -> Iterator[bytes]:
        """A range of an object, in requests of their own, each of which is tried again when it is cut off."""
        while start < end:
            with _reaching():
                chunk: bytes = self._s3.cat_file(key, start=start, end=min(end, start + _CHUNK))
            if not chunk:
                raise Away(f"{key}: shorter than when it was published")
            start += len(chunk)
            yield chunk

    def _put(self, path: Path, key: str, digest: rundir.FileDigest) -> None:
        """Put a file under the name of its content. Raises `FileNotFoundError` if it has another one by now."""
        if path.suffix != ".safetensors":  # weights never change; all else is small, and may grow or be replaced
            with path.open("rb") as file:
                content = file.read(digest.size)
            if hashlib.sha256(content).hexdigest() != digest.sha256:
                raise FileNotFoundError(f"{path}: replaced while it was published")
            self._s3.pipe_file(key, content)
        else:
            self._s3.put_file(str(path), key, chunksize=_CHUNK, max_concurrency=_PARTS)

    def _object(self, job_id: str, sha256: str) -> str:
        return f"{self._root}/{job_id}/objects/{sha256}"

    def _manifest(self, job_id: str) -> str:
        return f"{self._root}/{job_id}/manifest.json"

    def _keys(self, job_id: str) -> dict[str, int]:
        """Everything of a job, with sizes."""
        folder = f"{self._root}/{job_id}"
        found = self._s3.find(folder, detail=True)
        return {name: int(one["size"]) for name, one in found.items() if name.startswith(f"{folder}/")}

    def _forget(self, keys: Any) -> None:
        """Remove objects; the manifest goes first, so that none is missed while it is still listed."""
        if gone := sorted(keys, key=lambda key: not key.endswith("/manifest.json")):
            self._s3.rm(gone)


class _Object:
    """An object as a piece of what is sent."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket, self._key = bucket, key

    def read(self, start: int, end: int) -> Iterator[bytes]:
        return self._bucket.read(self._key, start, end)


def _published(run: rundir.RunDir, known: Mapping[str, rundir.FileDigest]) -> dict[str, rundir.FileDigest]:
    """What the run has published until now, without what still changes. Everything is hashed once."""
    found: dict[str, rundir.FileDigest] = {}

    def take(path: Path, digest: rundir.FileDigest | None = None) -> None:
        name = str(path.relative_to(run.root))
        found[name] = digest or known.get(name) or rundir.digest(path)

    for one in revisions.listed(run).values():
        for name, digest in one.files.items():
            take(one.folder / name, digest)
    for path in sorted(run.init.iterdir()):
        if path.is_file():
            take(path)
    for listed in run.checkpoints.glob(f"step-*/{_DIGESTS}"):
        take(listed, rundir.digest(listed))
        for name, digest in _LISTED.validate_json(listed.read_bytes()).items():
            take(listed.with_name(name), digest)
    for path in (run.job, run.plan, run.result, *run.revisions.glob("*.json")):
        if path.exists():
            take(path)
    return found


def _changing(run: rundir.RunDir) -> dict[str, Path]:
    """Published files that grow or are replaced, by their name in the run folder."""
    there = (run.events, *run.checkpoints.glob("*.json"))
    return {str(path.relative_to(run.root)): path for path in there if path.exists()}


def _record(root: Path) -> dict[str, rundir.FileDigest]:
    """What the bucket has of a run; nothing if that is not known."""
    try:
        return Publication.model_validate_json((root / RECORD).read_bytes()).files
    except (FileNotFoundError, ValidationError):
        return {}


def _write_record(root: Path, manifest: bytes) -> None:
    """Raises `FileNotFoundError` if the folder is gone: it must not come back. Lost or torn, it is made anew."""
    aside = root / f".{RECORD}.tmp"
    aside.write_bytes(manifest)
    aside.replace(root / RECORD)


def _run_of(path: Path) -> Path:
    """The run folder of a published file: `jobs/ID/…`."""
    return next(one for one in path.parents if one.parent.name == "jobs")


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    """botocore's and the network's many errors as `Away`; a missing file is told apart from a missing bucket."""
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except FileNotFoundError as error:
        said = error.__cause__
        if isinstance(said, ClientError) and said.response["Error"]["Code"] == "NoSuchBucket":
            raise Away("there is no such bucket") from error
        raise
    except (BotoCoreError, ClientError, aiohttp.ClientError, OSError, TimeoutError) as error:
        raise Away(f"{type(error).__name__}: {error}") from error
