"""How a request becomes a job: checked, extracted in a folder of its own, and only then written down."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, ValidationError

from etd_ds.contract import corpora, errors, launch, rundir, shape, spec, teachers
from service import addresses, outbox
from service.backlog import Backlog
from service.extraction import Extractor
from service.problems import Problem, of_error, of_validation
from service.queue import Queue
from service.settings import Settings
from service.storage import GONE, Storage
from service.store import Job, Store, Taken

_KEY_SECONDS = 10.0
"""How long a request waits at least for an earlier one with its key."""


class JobRequest(spec.JobSpec):
    """The body of `POST /jobs`: a job spec, and what the queue wants to know beside it."""

    model_config = ConfigDict(title="JobRequest")

    labels: dict[str, str] = Field(default_factory=dict, max_length=20)
    """Names and values of your own, to find jobs by; at most 20."""
    priority: int = Field(default=0, ge=-100, le=100)
    """Higher ones start first."""
    webhook: str = Field(default="", max_length=2000)
    """An https address that is told, by signed POSTs, what becomes of the job."""
    webhook_events: list[outbox.EventName] = Field(default=["succeeded", "failed", "cancelled"], max_length=20)
    """What it is told of."""

    def spec(self) -> spec.JobSpec:
        """The job spec alone, of the fields that were given."""
        given = self.model_dump(exclude_unset=True, include=set(spec.JobSpec.model_fields))
        return spec.JobSpec.model_validate(given)


def parse(body: bytes) -> JobRequest:
    """The request of a JSON body. Strict: "3" is no number. Raises `Problem` 422 that names each bad field."""
    try:
        return JobRequest.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise of_validation(error, known=JobRequest.model_fields) from None


class Admission:
    """The one way in. `admit` is called from many threads; the extractor takes them one at a time."""

    def __init__(
        self, settings: Settings, store: Store, storage: Storage, queue: Queue, extractor: Extractor, backlog: Backlog
    ) -> None:
        self._settings = settings
        self._store = store
        self._storage = storage
        self._queue = queue
        self._extractor = extractor
        self._backlog = backlog
        self._changed = threading.Condition()
        self._keys: set[tuple[str, str]] = set()
        self._waiting = 0
        self._entering: Counter[str] = Counter()

    def check(self, job: spec.JobSpec) -> spec.JobSpec:
        """The spec with its aliases resolved. Raises `Problem` or `EtdError` that names the field, before any work."""
        self._check_machine(job)
        resolved = self._resolve(job)
        where = teachers.EMBEDDED if resolved.teacher == teachers.EMBEDDED else self._settings.teachers.get(job.teacher)
        if where is not None:  # a local folder: its shape is known without asking the worker
            _check_folder(job, teachers.embedded_folder() if where == teachers.EMBEDDED else Path(where))
        return resolved

    def plan(self, request: JobRequest) -> dict[str, Any]:
        """What a job would make and cost; nothing is created. Raises as `admit` does."""
        return self._extractor.plan(self.check(request.spec()))

    def admit(self, request: JobRequest, *, tenant: str, key: str | None = None, patience: float) -> tuple[Job, bool]:
        """Check, extract, write down: (the job, whether it is new). On any error nothing is left or seen.

        After `patience` seconds the job is written down as `extracting`, which then goes on behind the answer: what
        fails in it becomes the job's error. A second request with the same `key` gets the first one's job; `Problem`
        409 if it asks for something else.
        """
        content = hashlib.sha256(request.model_dump_json(exclude_unset=True).encode()).hexdigest()
        with self._one_at_a_time(tenant, key, patience):
            if key is not None and (found := self._store.by_request(tenant, key)) is not None:
                return _same(found, content), False
            with self._place(tenant):
                try:
                    return self._make(request, tenant, key, content, patience), True
                except Taken as taken:  # another server has made it meanwhile
                    return _same(taken.job, content), False

    @contextmanager
    def _one_at_a_time(self, tenant: str, key: str | None, patience: float) -> Iterator[None]:
        """Let a request that was sent again wait for the first one, instead of doing its work a second time."""
        if key is None:
            yield
            return
        with self._changed:
            self._waiting += 1  # each of them holds one of the server's threads
            room = self._waiting <= self._settings.extraction_waiting
            limit = max(patience, _KEY_SECONDS) if room else 0
            free = self._changed.wait_for(lambda: (tenant, key) not in self._keys, limit)
            self._waiting -= 1
            if not free:
                detail = "The first request with this Idempotency-Key is still being worked on; send it again later."
                raise Problem(409, "key_in_use", detail, headers={"Retry-After": "10"})
            self._keys.add((tenant, key))
        try:
            yield
        finally:
            with self._changed:
                self._keys.remove((tenant, key))
                self._changed.notify_all()

    @contextmanager
    def _place(self, tenant: str) -> Iterator[None]:
        """Hold one of a tenant's places while its job is made and not written down yet. Raises `Problem` 429."""
        quota = self._settings.quota
        with self._changed:
            if quota and self._store.unfinished(tenant) + self._entering[tenant] >= quota:
                detail = f"{quota} unfinished jobs are allowed here; wait for one, or cancel one."
                raise Problem(429, "quota", detail, headers={"Retry-After": "60"})
            self._entering[tenant] += 1
        try:
            yield
        finally:
            with self._changed:
                self._entering[tenant] -= 1

    def discard(self, job_id: str, *, ended_before: float | None = None) -> bool:
        """Forget an ended or paused job and its files; False if it is neither, or did not end before that time.

        What is left is swept up later.
        """
        if not self._store.delete(job_id, ended_before=ended_before):
            return False
        aside = self._settings.incoming / f"{GONE}{job_id}"
        with suppress(FileNotFoundError):  # the folder is lost, which is what was asked for
            (self._settings.runs / job_id).rename(aside)
        self._storage.remove(aside)
        return True

    def _make(self, request: JobRequest, tenant: str, key: str | None, content: str, patience: float) -> Job:
        asked = request.spec()
        if request.webhook:
            addresses.check_url(request.webhook, self._settings.webhook_hosts)
        resolved = self.check(asked)
        job = Job(
            id="job-" + secrets.token_hex(10),
            spec=asked,
            ranks=asked.world_size,
            tenant=tenant,
            labels=request.labels,
            priority=request.priority,
            created=time.time(),
            request_key=key,
            request_hash=content,
            webhook=request.webhook,
            webhook_events=" ".join(dict.fromkeys(request.webhook_events)) if request.webhook else "",
        )
        run = rundir.RunDir(self._settings.runs / job.id)
        try:
            rundir.publish_json(run.job, json.loads(resolved.model_dump_json(exclude_unset=True)))
            rundir.fsync_path(run.root.parent)
            if patience > 0:
                return self._backlog.extract(job, run, patience)
            made = self._store.add(replace(job, status="extracting"))
        except BaseException:
            shutil.rmtree(run.root, ignore_errors=True)
            raise
        self._backlog.wake()
        return made

    def _check_machine(self, job: spec.JobSpec) -> None:
        settings = self._settings
        if job.nodes > settings.job_nodes:
            mine = "this server runs jobs on its own machine only"
            most = f"1 to {settings.job_nodes}, which is what this server's cluster allows"
            raise _refuse("nodes", job.nodes, most if settings.slurm else f"1: {mine}")
        # a server that has no machine of its own, and knows of none yet, takes what may come
        slots = max([settings.slots, *(worker.slots for worker in self._queue.workers())]) or job.world_size
        per_node = min(slots, settings.slurm.gpus_per_node) if settings.slurm else slots
        if job.gpus > per_node or job.world_size > slots:
            raise _refuse("gpus", job.gpus, f"1 to {min(per_node, slots // job.nodes)}, which is what this server has")
        if not launch.ds_config(job).is_file():
            there = sorted(path.stem for path in launch.ds_config(job).parent.glob("*.json"))
            raise _refuse("deepspeed", job.deepspeed, f"one of {', '.join(there)}")

    def _resolve(self, job: spec.JobSpec) -> spec.JobSpec:
        """Aliases become what the operator says they are; a path from outside never gets through."""
        change: dict[str, Any] = {}
        hub = self._settings.hub
        for field, aliases, parse_hub, form, error in (
            ("teacher", self._settings.teachers, teachers.parse_hub, "org/name[@commit]", errors.TeacherError),
            ("corpus", self._settings.corpora, corpora.parse_hub, "org/name[:config][@revision]", errors.CorpusError),
        ):
            reference: str = getattr(job, field)
            if reference in aliases:
                change[field] = str(aliases[reference])
            elif reference != teachers.EMBEDDED and not (hub and parse_hub(reference)):
                wanted = " | ".join(["embedded", *aliases, *([f"a hub id such as {form}"] if hub else [])])
                raise error(f"{field}: wanted {wanted}, got {reference!r}", wanted=wanted, got=reference)
        return job.model_copy(update=change) if change else job


def _same(job: Job, content: str) -> Job:
    if job.request_hash != content:
        raise Problem(409, "key_reused", f"This Idempotency-Key made {job.id}, of another request.")
    return job


def _check_folder(job: spec.JobSpec, folder: Path) -> None:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        raise of_error(errors.TeacherError(f"teacher: {job.teacher!r} has no readable config.json").as_dict()) from None
    shape.student(job, shape.from_config(config))
    if not any(folder.glob("*.safetensors")):
        message = f"teacher: {job.teacher!r} has no model.safetensors, and no other format is ever loaded"
        raise errors.TeacherError(message, wanted="model.safetensors")


def _refuse(field: str, got: object, wanted: str) -> Problem:
    error = errors.HardwareError(f"{field}: wanted {wanted}, got {got}", field=field, wanted=wanted, got=got)
    return of_error(error.as_dict())
