"""Create, list, look, cancel."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse

from service import admission, tail
from service.problems import Problem, documented
from service.routes.context import Context, Here, prefix, read_body
from service.routes.view import job_json
from service.store import Job

router = APIRouter(tags=["jobs"])

_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobRequest"}}},
    }
}


@router.post("/jobs", status_code=201, openapi_extra=_BODY, responses=documented(413, 422, 503, 507))
async def create(request: Request, here: Here) -> JSONResponse:
    """Check the spec, cut the student out of its teacher, and queue its distillation."""
    if here.draining:
        raise Problem(503, "shutting_down", "The server is going down.", headers={"Retry-After": "30"})
    asked = admission.parse(await read_body(request, here.settings.max_body))
    job = await run_in_threadpool(here.admission.admit, asked, tenant="default", request_key=None, request_hash="")
    here.wake()
    base = prefix(request)
    content = await run_in_threadpool(job_json, here, job, base)
    return JSONResponse(content, 201, headers={"Location": content["links"]["self"]})


@router.get("/jobs")
def page(request: Request, here: Here) -> dict[str, Any]:
    """The newest jobs first."""
    base = prefix(request)
    return {"data": [job_json(here, job, base, brief=True) for job in here.store.page()]}


@router.get("/jobs/{job_id}", responses=documented(404))
def show(job_id: str, request: Request, here: Here) -> dict[str, Any]:
    """One job."""
    return job_json(here, here.job(job_id), prefix(request))


@router.post("/jobs/{job_id}/cancel", responses=documented(404, 409))
def cancel(job_id: str, request: Request, here: Here) -> dict[str, Any]:
    """End the job. A running one writes a checkpoint first; its status changes when it has left."""
    return job_json(here, _ask(here, job_id, "cancel"), prefix(request))


@router.get("/jobs/{job_id}/log", response_class=PlainTextResponse, responses=documented(404))
def log(job_id: str, here: Here, lines: int = 1000) -> str:
    """The last lines that launcher and trainer printed."""
    return "".join(line + "\n" for line in tail.last_lines(here.run(here.job(job_id)).log, lines, limit=1 << 20))


def _ask(here: Context, job_id: str, wish: Any) -> Job:
    job = here.store.ask(here.job(job_id).id, wish)
    if job is None:
        status = here.job(job_id).status
        raise Problem(409, "not_now", f"A job that is {status} cannot be asked to {wish}.")
    here.wake()
    return job
