"""What every route works with: the parts of the server, found on the request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from etd_ds.contract import errors, rundir
from service import revisions
from service.admission import Admission
from service.extraction import Extractor
from service.keys import Keys
from service.limits import Limiter, Places
from service.metrics import Latencies
from service.outbox import Outbox
from service.problems import Problem
from service.publisher import Publisher
from service.queue import Queue
from service.settings import Settings
from service.storage import Storage
from service.store import Job, Store


@dataclass
class Context:
    """One server's parts."""

    settings: Settings
    store: Store
    storage: Storage
    queue: Queue
    keys: Keys
    outbox: Outbox
    limiter: Limiter
    streams: Places
    """Of open streams."""
    latencies: Latencies
    extractor: Extractor
    admission: Admission
    wake: Callable[[], None]
    """Makes the scheduler look at once."""
    scheduler_seen: Callable[[], float]
    """When the scheduler last worked."""
    publisher: Publisher | None
    """Brings what runs publish to the bucket, and removes what is old; none: there is neither to do."""
    draining: bool = False
    """Set when the server is asked to go; open streams then end."""
    version: str = ""
    watched: dict[str, tuple[float, Job | None]] = field(default_factory=dict)
    """Jobs that are followed, and when each was last looked up."""

    def run(self, job: Job) -> rundir.RunDir:
        return rundir.RunDir(self.settings.runs / job.id)


def _context(request: Request) -> Context:
    found: Context = request.app.state.context
    return found


Here = Annotated[Context, Depends(_context)]


def prefix(request: Request) -> str:
    """What stands before `/jobs` in links: a proxy's root path, and `/v1` when it was asked for."""
    root = str(request.scope.get("root_path", "")).rstrip("/")
    return root + ("/v1" if request.url.path.removeprefix(root).startswith("/v1/") else "")


async def read_body(request: Request, limit: int) -> bytes:
    """The request's body, or `Problem` 413 as soon as it is too large."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise Problem(413, "request_too_large", f"A request's body may have {limit} bytes here.")
    return body


def published(here: Context, run: rundir.RunDir, name: str) -> revisions.Revision | None:
    """A revision by its name or its commit; a kept checkpoint becomes one when it is first asked for."""
    for ref, one in revisions.of_run(run).items():
        if name in (ref, one.commit, f"refs/heads/{ref}"):
            return one
    step = revisions.kept_step(run, name)
    if step is None:
        return None
    try:
        here.extractor.revision(run, step)
    except Problem as problem:
        if problem.code == errors.RunFolderError.code:  # not kept any more by now, or damaged
            return None
        raise
    if here.settings.artifacts:
        (here.settings.revised / run.root.name).touch()
    return revisions.of_run(run)[f"step-{step}"]
