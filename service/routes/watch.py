"""A run's events and log, as far as they are or followed to the end. Events replay from any byte offset."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse
from sqlalchemy.exc import OperationalError

from etd_ds.contract import events
from service import tail
from service.problems import Problem, documented
from service.routes import answers
from service.routes.access import Caller, Reader, identify
from service.routes.context import Context
from service.status import ENDED
from service.store import Job

router = APIRouter(tags=["jobs"])

_LOOK_SECONDS = 0.3
_PING_SECONDS = 15.0
_KEY_SECONDS = 15.0
"""How long a stream may outlive the key that it was opened with."""
_WATCHED = 1000
_LISTED = 10_000
_LOG_BYTES = 1 << 20
_EVENTS: dict[int | str, dict[str, Any]] = {200: {"model": answers.Events, "content": {"text/event-stream": {}}}}
_RAW = {"X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}


async def _until_sent() -> AsyncIterator[ExitStack]:
    """What is put on it happens when the answer is sent, or its reader has gone."""
    with ExitStack() as stack:
        yield stack


UntilSent = Annotated[ExitStack, Depends(_until_sent)]


@router.get("/jobs/{job_id}/events", responses=documented(401, 403, 404, 422, 429) | _EVENTS)
async def watch(
    job_id: str,
    request: Request,
    who: Reader,
    until_sent: UntilSent,
    last_event_id: Annotated[str, Header(pattern=r"^[0-9]{0,12}$")] = "",
    after: Annotated[int, Query(ge=0, le=10**12)] = 0,
) -> Response:
    """Events from byte offset `after` (or `Last-Event-ID`) on: server-sent ones, or a JSON list if that is accepted.

    An event's id is the offset behind it. A list has at most 10,000, and `next` is the `after` of the rest. Besides the
    run's own events there are `status` ones in the stream, which tell what the job has become; it ends after the one
    that says how the job ended.
    """
    here = who.here
    job = await run_in_threadpool(who.job, job_id)
    after = int(last_event_id or after)
    accepted = request.headers.get("accept", "")
    if "application/json" in accepted and "text/event-stream" not in accepted:
        return JSONResponse(await run_in_threadpool(_list, here, job, after))
    _take_place(who, until_sent)
    return EventSourceResponse(_stream(request, here, job.id, after), headers=_RAW)


@router.get("/jobs/{job_id}/log", response_class=PlainTextResponse, responses=documented(401, 403, 404, 422, 429))
def log(
    job_id: str,
    request: Request,
    who: Reader,
    until_sent: UntilSent,
    lines: Annotated[int, Query(ge=0, le=100_000)] = 1000,
    follow: bool = False,
) -> Response:
    """The last lines that launcher and trainer printed; with `follow`, also those to come, until the job has ended."""
    job = who.job(job_id)
    if follow:
        _take_place(who, until_sent)
        return StreamingResponse(
            _follow(request, who.here, job, lines), media_type="text/plain; charset=utf-8", headers=_RAW
        )
    return PlainTextResponse(
        "".join(line + "\n" for line in tail.last_lines(who.here.run(job).log, lines, limit=_LOG_BYTES))
    )


def _take_place(who: Caller, until_sent: ExitStack) -> None:
    """Have this answer be one of the tenant's streams. Raises `Problem` 429."""
    here = who.here
    if not here.streams.take(who.tenant):
        detail = f"{here.settings.streams} streams may be open at once here; end one, or ask without following."
        raise Problem(429, "too_many_streams", detail)
    until_sent.callback(here.streams.give_back, who.tenant)


async def _follow(request: Request, here: Context, started: Job, lines: int) -> AsyncIterator[bytes]:
    path = here.run(started).log
    last, offset = tail.whole_lines(path, lines, limit=_LOG_BYTES)
    for line in last:
        yield line.encode() + b"\n"
    async for _ in _looks(request, here, started.id):
        for whole in events.lines(path, offset):
            offset = whole.end
            if line := tail.shown(whole.text):
                yield line.encode() + b"\n"
                await asyncio.sleep(0)  # other requests have their turn, however much there is to send


def _list(here: Context, job: Job, after: int) -> dict[str, object]:
    lines = filter(_whole, events.lines(here.run(job).events, after))
    found = [(line.end, json.loads(line.text)) for line in itertools.islice(lines, _LISTED)]
    return {
        "status": job.status,
        "data": [{"id": end, **event} for end, event in found],
        "next": found[-1][0] if found else after,
    }


async def _stream(request: Request, here: Context, job_id: str, offset: int) -> AsyncIterator[bytes]:
    told, spoke = None, time.monotonic()
    async for job in _looks(request, here, job_id):
        for line in events.lines(here.run(job).events, offset):
            offset, spoke = line.end, time.monotonic()
            if _whole(line):
                yield _sent(offset, json.loads(line.text)["type"], line.text)
            await asyncio.sleep(0)  # other requests have their turn, however much there is to send
        if job.status != told:
            told, spoke = job.status, time.monotonic()
            data = {"type": "status", "status": job.status, "error": job.error_code or None}
            yield _sent(offset, "status", json.dumps(data))
        if time.monotonic() - spoke >= _PING_SECONDS:
            spoke = time.monotonic()
            yield KEEPALIVE_COMMENT


async def _looks(request: Request, here: Context, job_id: str) -> AsyncIterator[Job]:
    """The job again and again, until it has ended or is deleted, the server goes, or the watcher's key is not valid.

    What it is is known before its files are read: whoever has ended writes no more.
    """
    asked = time.monotonic()
    with suppress(Problem, OperationalError):  # whoever asks again is told which; the latter is a database that is away
        while (job := await _now(here, job_id)) is not None:
            yield job
            if job.status in ENDED or here.draining:
                return
            await asyncio.sleep(_LOOK_SECONDS)
            if time.monotonic() - asked >= _KEY_SECONDS:
                asked = time.monotonic()
                await run_in_threadpool(identify, request, here)


async def _now(here: Context, job_id: str) -> Job | None:
    """The job as it is; all watchers of a job share one look at the database, unless it is about to end for them."""
    at, job = here.watched.get(job_id, (0.0, None))
    if time.monotonic() - at >= _LOOK_SECONDS / 2 or job is None or job.status in ENDED:
        job = await run_in_threadpool(here.store.get, job_id)
        here.watched[job_id] = time.monotonic(), job
        while len(here.watched) > _WATCHED:
            del here.watched[next(iter(here.watched))]
    return job


def _sent(offset: int, kind: str, text: str) -> bytes:
    """One server-sent event; its id first, for readers that take the lines as they come."""
    return f"id: {offset}\nevent: {kind}\ndata: {text}\n\n".encode()


def _whole(line: events.Line) -> bool:
    """Whether a line is an event; a trainer killed while it wrote leaves one that is not."""
    try:
        events.parse(line.text)
    except ValueError:
        return False
    return True
