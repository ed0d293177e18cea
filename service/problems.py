"""What goes wrong, as RFC 9457 problem documents that name the field."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from etd_ds.contract import errors
from service.reserve import is_full

log = logging.getLogger("etd_jobs")

TITLES = {
    400: "Bad request",
    401: "Authentication needed",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    406: "Not acceptable",
    409: "Conflict",
    413: "Request too large",
    416: "Range not satisfiable",
    422: "Invalid request",
    429: "Too many requests",
    500: "Internal error",
    503: "Not available right now",
    507: "The server's disk is full",
}

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {
                    "field": {"type": ["string", "null"]},
                    "message": {"type": "string"},
                    "wanted": {},
                    "got": {},
                },
            },
        },
    },
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route that may answer with these problems."""
    body = {"application/problem+json": {"schema": SCHEMA}}
    return {status: {"description": TITLES[status], "content": body} for status in statuses}


class Problem(Exception):
    """Ends a request with a problem document. `code` is stable and machine-readable."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: list[dict[str, Any]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors or []
        later = {"Retry-After": "10"} if status in (429, 503) else {}
        self.headers = {**later, **(headers or {})}

    def response(self) -> JSONResponse:
        body = {"type": "about:blank", "title": TITLES.get(self.status, "Error"), "status": self.status}
        body |= {"code": self.code, "detail": self.detail}
        if self.errors:
            body["errors"] = self.errors
        return JSONResponse(body, self.status, headers=self.headers, media_type="application/problem+json")


def of_error(error: Mapping[str, Any], status: int = 422) -> Problem:
    """The problem of an `EtdError.as_dict()`."""
    named = {"field": error.get("field"), "message": error["message"]}
    for key in ("wanted", "got"):
        if error.get(key) is not None:
            named[key] = shown(error[key])
    return Problem(status, str(error.get("code", "bad_input")), str(error["message"]), errors=[named])


def of_validation(error: ValidationError, *, known: Mapping[str, Any]) -> Problem:
    """The problem of a pydantic error; `known` are the model's fields."""
    named = [_named(dict(one), known) for one in error.errors(include_url=False)[:20]]
    cause = error.errors(include_url=False)[0].get("ctx", {}).get("error")
    code = cause.code if isinstance(cause, errors.EtdError) else "bad_input"
    return Problem(422, code, "; ".join(one["message"] for one in named)[:2000], errors=named)


def _named(one: dict[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    cause = one.get("ctx", {}).get("error")
    if isinstance(cause, errors.EtdError):
        return of_error(cause.as_dict()).errors[0]
    field = str(one["loc"][0])[:200] if one["loc"] else None
    if one["type"] == "extra_forbidden":
        return {"field": field, "message": f"{field}: no such field", "wanted": list(known), "got": field}
    if one["type"] == "missing":
        return {"field": field, "message": f"{field}: required", "wanted": "a value"}
    if one["type"] == "json_invalid" or field is None:
        return {"field": None, "message": f"The body is not a JSON object: {one['msg']}", "wanted": "a JSON object"}
    return _told(field, one["msg"], one.get("input"))


def _told(field: str, text: str, got: Any) -> dict[str, Any]:
    text, got = text.removeprefix("Value error, "), shown(got)
    message = f"{field}: {text}, got {json.dumps(got, ensure_ascii=False)}"
    return {"field": field, "message": message, "wanted": text, "got": got}


def shown(value: Any) -> Any:
    """A value from outside in a form that is safe to send back: short, finite, JSON."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return value[:200] if isinstance(value, str) else repr(value)[:200]


def _methods(request: Request) -> set[str]:
    """What may be done with the request's path."""
    allowed: set[str] = set()
    for method in ("GET", "HEAD", "POST", "DELETE"):
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            allowed.add(method)
    return allowed


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem document."""

    async def on_problem(_: Request, error: Problem) -> JSONResponse:
        return error.response()

    async def on_error(request: Request, error: errors.EtdError) -> JSONResponse:
        if isinstance(error, errors.RunFolderError):  # ours to mend, and its words name our folders
            return await on_bug(request, error)
        return of_error(error.as_dict()).response()

    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}.get(error.status_code, "http")
        headers = dict(error.headers or {})
        if error.status_code == 405:  # Starlette names the methods of the first route only
            headers["Allow"] = ", ".join(sorted(_methods(request)))
        return Problem(error.status_code, code, str(error.detail), headers=headers).response()

    async def on_parameters(_: Request, error: RequestValidationError) -> JSONResponse:
        # where it is: query, header or path; its name; and for one of several its number
        named = [_told(str(one["loc"][:2][-1]), one["msg"], one.get("input")) for one in error.errors()[:20]]
        return Problem(422, "bad_input", "; ".join(str(one["message"]) for one in named), errors=named).response()

    async def on_disk(request: Request, error: OSError) -> JSONResponse:
        if is_full(error):
            return Problem(507, "disk_full", "The server's disk is full; nothing was changed.").response()
        return await on_bug(request, error)

    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        log.error("%r %r failed", request.method, request.url.path, exc_info=error)
        return Problem(500, "internal", "Something failed inside the server; its log says what.").response()

    async def on_database(request: Request, error: OperationalError) -> JSONResponse:
        if is_full(error):
            return Problem(507, "disk_full", "The server's disk is full; nothing was changed.").response()
        log.error("%r %r failed", request.method, request.url.path, exc_info=error)
        return Problem(503, "database_away", "The database does not answer; try again.").response()

    app.add_exception_handler(OperationalError, on_database)  # type: ignore[arg-type]
    app.add_exception_handler(Problem, on_problem)  # type: ignore[arg-type]
    app.add_exception_handler(errors.EtdError, on_error)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, on_http)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, on_parameters)  # type: ignore[arg-type]
    app.add_exception_handler(OSError, on_disk)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, on_bug)
