"""Create, list, look, and everything that one can ask of a job."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, StringConstraints

from etd_ds.contract import events
from service import admission, tracing
from service.problems import Problem, documented
from service.routes import answers
from service.routes.access import Caller, Reader, Writer
from service.routes.context import prefix, read_body
from service.routes.view import job_json
from service.status import Status, Wish

router = APIRouter(tags=["jobs"])

_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobRequest"}}},
    }
}


def _answers(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": model}}


_ASKED = documented(401, 403, 404, 409, 429) | _answers(answers.Job)
Label = Annotated[str, StringConstraints(pattern=r"^[^:]+:", max_length=500)]
"""NAME:VALUE"""
Key = Annotated[str, Header(max_length=255, pattern=r"^[\x21-\x7e]*$")]


@router.post(
    "/jobs",
    status_code=201,
    openapi_extra=_BODY,
    responses=documented(401, 403, 409, 413, 422, 429, 503, 507)
    | {
        201: {"model": answers.Job, "description": "The student is extracted, and the job is queued"},
        202: {"model": answers.Job, "description": "The extraction goes on; the job is `extracting` and queues itself"},
    },
)
async def create(
    request: Request, who: Writer, idempotency_key: Key = "", prefer: Annotated[str, Header(max_length=255)] = ""
) -> JSONResponse:
    """Check the spec, cut the student out of its teacher, and queue its distillation.

    With `Prefer: respond-async` (or `wait=SECONDS`), and when the extraction takes too long, the answer is 202: the job
    is `extracting`, and queues itself. With an `Idempotency-Key`, a request that is sent twice makes one job.
    """
    here = who.here
    if here.draining:
        raise Problem(503, "shutting_down", "The server is going down.", headers={"Retry-After": "30"})
    asked = admission.parse(await read_body(request, here.settings.max_body))
    patience, applied = _patience(prefer, here.settings.respond_within)
    job, new = await run_in_threadpool(
        here.admission.admit, asked, tenant=who.tenant, key=idempotency_key or None, patience=patience
    )
    here.wake()
    tracing.concerns(job.id)
    request.state.made = job.id
    content = await run_in_threadpool(job_json, here, job, prefix(request))
    behind = job.status == "extracting"
    headers = {"Location": content["links"]["self"]} | ({} if new else {"Idempotent-Replayed": "true"})
    headers |= {"Preference-Applied": applied} if behind and applied else {}
    return JSONResponse(content, 202 if behind else 201, headers=headers)


@router.post("/plan", openapi_extra=_BODY, responses=documented(401, 403, 413, 422, 503) | _answers(answers.Plan))
async def plan(request: Request, who: Reader) -> dict[str, Any]:
    """What a job of this spec would make and what that would cost, without making anything."""
    asked = admission.parse(await read_body(request, who.here.settings.max_body))
    return await run_in_threadpool(who.here.admission.plan, asked)


@router.get("/jobs", responses=documented(401, 403, 404, 422) | _answers(answers.Page))
def page(
    request: Request,
    who: Reader,
    after: Annotated[str, Query(max_length=64)] = "",
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    status: Annotated[list[Status], Query()] = [],  # noqa: B006 (FastAPI copies it)
    label: Annotated[list[Label], Query(max_length=20)] = [],  # noqa: B006
) -> JSONResponse:
    """The newest jobs first. `next`, when it is not null, is the `after` of the following page."""
    before = None
    if after:
        before = who.job(after).seq
    wanted = dict(one.partition(":")[::2] for one in label)
    found = who.here.store.page(tenant=who.tenant, before=before, status=status, labels=wanted, limit=limit + 1)
    base = prefix(request)
    line = who.here.queue.line() if any(job.status == "queued" for job in found) else None
    shown = [job_json(who.here, job, base, brief=True, line=line) for job in found[:limit]]
    return JSONResponse({"data": shown, "next": found[limit - 1].id if len(found) > limit else None})


@router.get("/jobs/{job_id}", responses=documented(401, 403, 404) | _answers(answers.Job))
def show(job_id: str, request: Request, who: Reader) -> JSONResponse:
    """One job."""
    return JSONResponse(job_json(who.here, who.job(job_id), prefix(request)))


@router.delete(
    "/jobs/{job_id}", status_code=204, response_class=Response, responses=documented(401, 403, 404, 409, 429)
)
def delete(job_id: str, who: Writer) -> Response:
    """Forget a job that has ended or is paused, with its student, checkpoints and log."""
    if not who.here.admission.discard(who.job(job_id).id):
        raise Problem(409, "not_now", "Only a job that has ended or is paused can be deleted; cancel it first.")
    return Response(status_code=204)


@router.post("/jobs/{job_id}/cancel", responses=_ASKED)
def cancel(job_id: str, request: Request, who: Writer) -> dict[str, Any]:
    """End the job. A running one writes a checkpoint first; its status changes when it has left."""
    return _ask(who, job_id, "cancel", request)


@router.post("/jobs/{job_id}/pause", responses=_ASKED)
def pause(job_id: str, request: Request, who: Writer) -> dict[str, Any]:
    """Let a running job write a checkpoint and free its slots, or hold a queued one back."""
    return _ask(who, job_id, "pause", request)


@router.post("/jobs/{job_id}/resume", responses=_ASKED)
def resume(job_id: str, request: Request, who: Writer) -> dict[str, Any]:
    """Queue a paused job again; it continues from its checkpoint."""
    return _ask(who, job_id, "resume", request)


@router.post("/jobs/{job_id}/retry", responses=_ASKED)
def retry(job_id: str, request: Request, who: Writer) -> dict[str, Any]:
    """Queue a failed or cancelled job again; it continues from its last checkpoint, if it has one."""
    return _ask(who, job_id, "retry", request)


@router.get("/jobs/{job_id}/checkpoints", responses=documented(401, 403, 404) | _answers(answers.Checkpoints))
def checkpoints(job_id: str, who: Reader) -> dict[str, Any]:
    """The checkpoints that were written, and which of them are still kept, with the held-out loss at that step."""
    run = who.run(job_id)
    found: dict[str, dict[str, Any]] = {}
    losses: dict[int, float] = {}
    for line in events.lines(run.events):
        if '"checkpoint"' not in line.text and '"validation"' not in line.text:
            continue
        try:
            event = events.parse(line.text)
        except ValueError:
            continue
        if isinstance(event, events.Validation):
            losses[event.step] = event.loss
        elif isinstance(event, events.Checkpoint):
            kept = "/" not in event.name and (run.checkpoints / event.name).is_dir()
            found[event.name] = {
                "name": event.name,
                "revision": f"step-{event.step}",
                "step": event.step,
                "time": event.time,
                "kept": kept,
            }
    return {"data": [{**one, "validation_loss": losses.get(one["step"])} for one in found.values()]}


def _patience(prefer: str, most: float) -> tuple[float, str]:
    """How many seconds to wait for an extraction, and the preference that says so [RFC 7240 §4.1, §4.3]."""
    named = dict(one.strip().lower().partition("=")[::2] for one in re.split("[,;]", prefer))
    wait = named.get("wait", "").strip('"')
    if re.fullmatch("[0-9]{1,6}", wait):
        return min(float(wait), most), f"wait={wait}"
    return (0.0, "respond-async") if "respond-async" in named else (most, "")


def _ask(who: Caller, job_id: str, wish: Wish, request: Request) -> dict[str, Any]:
    found = who.job(job_id)
    job = who.here.store.ask(found.id, wish, extracted=who.here.run(found).plan.exists())
    if job is None:
        raise Problem(409, "not_now", f"A job that is {who.job(job_id).status} cannot be asked to {wish}.")
    who.here.wake()
    return job_json(who.here, job, prefix(request))
