"""A run's events: as a list, or as a stream that replays from any byte offset and goes on until the job has ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse

from etd_ds.contract import events
from service.problems import Problem, documented
from service.routes.context import Context, Here
from service.status import ENDED

router = APIRouter(tags=["jobs"])

_LOOK_SECONDS = 0.3
_PING_SECONDS = 15.0
_CONTENT: dict[str, dict[str, str]] = {"text/event-stream": {}, "application/json": {}}


@router.get("/jobs/{job_id}/events", responses=documented(404, 422) | {200: {"content": _CONTENT}})
async def watch(
    job_id: str, request: Request, here: Here, last_event_id: Annotated[str | None, Header()] = None, after: int = 0
) -> Response:
    """Events from byte offset `after` (or `Last-Event-ID`) on: server-sent ones, or a JSON list if that is accepted.

    An event's id is the offset behind it. Besides the run's own events there are `status` ones, which tell what
    the job has become; the stream ends after the one that says how the job ended.
    """
    job = await run_in_threadpool(here.job, job_id)
    if last_event_id is not None:
        if not last_event_id.isascii() or not last_event_id.isdigit() or len(last_event_id) > 18:
            named = {"field": "Last-Event-ID", "message": "Last-Event-ID: wanted an id of this stream, a byte offset"}
            raise Problem(422, "bad_input", named["message"], errors=[named])
        after = int(last_event_id)
    if after < 0:
        named = {"field": "after", "message": "after: wanted a byte offset, 0 or more"}
        raise Problem(422, "bad_input", named["message"], errors=[named])
    accepted = request.headers.get("accept", "")
    if "application/json" in accepted and "text/event-stream" not in accepted:
        return JSONResponse(await run_in_threadpool(_list, here, job.id, after))
    return EventSourceResponse(_stream(here, job.id, after), headers={"X-Accel-Buffering": "no"})


def _list(here: Context, job_id: str, after: int) -> dict[str, object]:
    job = here.job(job_id)
    found = [(line.end, json.loads(line.text)) for line in events.lines(here.run(job).events, after) if _whole(line)]
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
        job = await run_in_threadpool(here.store.get, job_id)
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
