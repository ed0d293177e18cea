"""A run's events and log, as far as they are or followed to the end. Events replay from any byte offset."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse

from etd_ds.contract import events
from service import tail
from service.problems import documented
from service.routes import answers
from service.routes.access import Reader
from service.routes.context import Context
from service.status import ENDED
from service.store import Job

router = APIRouter(tags=["jobs"])

_LOOK_SECONDS = 0.3
_PING_SECONDS = 15.0
_WATCHED = 1000
_LISTED = 10_000
_LOG_BYTES = 1 << 20
_EVENTS: dict[int | str, dict[str, Any]] = {200: {"model": answers.Events, "content": {"text/event-stream": {}}}}
_RAW = {"X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}


@router.get("/jobs/{job_id}/events", responses=documented(401, 403, 404, 422) | _EVENTS)
async def watch(
    job_id: str,
    request: Request,
    who: Reader,
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
    return EventSourceResponse(_stream(here, job.id, after), headers=_RAW)


@router.get("/jobs/{job_id}/log", response_class=PlainTextResponse, responses=documented(401, 403, 404, 422))
def log(
    job_id: str, who: Reader, lines: Annotated[int, Query(ge=0, le=100_000)] = 1000, follow: bool = False
) -> Response:
    """The last lines that launcher and trainer printed; with `follow`, also those to come, until the job has ended."""
    job = who.job(job_id)
    if follow:
        return StreamingResponse(_follow(who.here, job, lines), media_type="text/plain; charset=utf-8", headers=_RAW)
    return PlainTextResponse(
        "".join(line + "\n" for line in tail.last_lines(who.here.run(job).log, lines, limit=_LOG_BYTES))
    )


async def _follow(here: Context, started: Job, lines: int) -> AsyncIterator[bytes]:
    path = here.run(started).log
    last, offset = tail.whole_lines(path, lines, limit=_LOG_BYTES)
    for line in last:
        yield line.encode() + b"\n"
    while True:
        job = await _now(here, started.id)
        for whole in events.lines(path, offset):
            offset = whole.end
            if line := tail.shown(whole.text):
                yield line.encode() + b"\n"
        if job is None or job.status in ENDED or here.draining:
            return
        await asyncio.sleep(_LOOK_SECONDS)


def _list(here: Context, job: Job, after: int) -> dict[str, object]:
    lines = filter(_whole, events.lines(here.run(job).events, after))
    found = [(line.end, json.loads(line.text)) for line in itertools.islice(lines, _LISTED)]
    return {
        "status": job.status,
        "data": [{"id": end, **event} for end, event in found],
        "next": found[-1][0] if found else after,
    }


async def _stream(here: Context, job_id: str, offset: int) -> AsyncIterator[bytes]:
    told = None
    silent = 0.0
    while True:
        # the status is read before the file: whoever has ended writes no more
        job = await _now(here, job_id)
        if job is None:
            return
        for line in events.lines(here.run(job).events, offset):
            offset, silent = line.end, 0.0
            if _whole(line):
                yield _sent(offset, json.loads(line.text)["type"], line.text)
        if job.status != told:
            told, silent = job.status, 0.0
            data = {"type": "status", "status": job.status, "error": job.error_code or None}
            yield _sent(offset, "status", json.dumps(data))
        if told in ENDED or here.draining:
            return
        await asyncio.sleep(_LOOK_SECONDS)
        silent += _LOOK_SECONDS
        if silent >= _PING_SECONDS:
            silent = 0.0
            yield KEEPALIVE_COMMENT


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
