"""Who asks, and what they may: a key's tenant and scopes, or everybody while the server is open."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request

from etd_ds.contract import rundir
from service import tracing
from service.keys import SCOPES
from service.problems import Problem
from service.routes.context import Context, Here
from service.store import Job

LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="etd-ds"'}


@dataclass(frozen=True)
class Caller:
    """Who sent a request. What another tenant has does not exist for them."""

    here: Context
    tenant: str
    scopes: frozenset[str]
    key: str = ""
    """The id of the key; empty on an open server."""
    name: str = ""

    def job(self, job_id: str) -> Job:
        """The job, or `Problem` 404: the same answer for none and for another tenant's."""
        found = self.here.store.get(job_id, tenant=self.tenant)
        if found is None:
            raise Problem(404, "job_not_found", "There is no such job.")
        tracing.concerns(found.id)
        return found

    def run(self, job_id: str) -> rundir.RunDir:
        return self.here.run(self.job(job_id))

    def need(self, scope: str) -> Caller:
        """Raises `Problem` 403 when the key has not this scope."""
        if scope not in self.scopes:
            raise Problem(403, "scope_missing", f"This key may not {SCOPES[scope]}: it lacks the scope {scope}.")
        return self


def identify(request: Request, here: Here) -> Caller:
    """The caller, or `Problem` 401. As long as no key was made, everybody on this machine is the one tenant."""
    request.state.caller = caller = _find(request, here)
    return caller


def _find(request: Request, here: Context) -> Caller:
    if not here.keys.there_are():
        _only_from_here(request, here)
        return Caller(here, "default", frozenset(SCOPES))
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    key = here.keys.find(secret.strip()) if scheme.lower() == "bearer" else None
    if key is None:
        raise Problem(401, "unauthenticated", "Send a valid key: Authorization: Bearer etd_…", headers=_CHALLENGE)
    return Caller(here, key.tenant, key.scopes, key.id, key.name)


def _only_from_here(request: Request, here: Context) -> None:
    """Refuse what a foreign web page makes a browser on this machine send to an open server."""
    origin = request.headers.get("origin")
    names = {request.url.hostname, urlsplit(origin).hostname if origin else request.url.hostname}
    if not names <= LOOPBACK | {here.settings.host}:
        detail = "Without keys this server answers only to requests by this machine's own name, such as localhost."
        raise Problem(403, "foreign_origin", detail)


def _reader(caller: Annotated[Caller, Depends(identify)]) -> Caller:
    return caller.need("jobs:read")


def _writer(request: Request, here: Here) -> Caller:
    request.state.changes = True  # so that it is in the audit log, however it is answered
    caller = identify(request, here)
    wait = here.limiter.wait(caller.key or caller.tenant)
    if wait:
        detail = f"{here.settings.rate} changes a minute are allowed here; try again in {wait:.0f} s."
        raise Problem(429, "too_fast", detail, headers={"Retry-After": str(math.ceil(wait))})
    return caller.need("jobs:write")


def _downloader(caller: Annotated[Caller, Depends(identify)]) -> Caller:
    return caller.need("students:read")


def _operator(caller: Annotated[Caller, Depends(identify)]) -> Caller:
    return caller.need("metrics:read")


Reader = Annotated[Caller, Depends(_reader)]
Writer = Annotated[Caller, Depends(_writer)]
Downloader = Annotated[Caller, Depends(_downloader)]
Operator = Annotated[Caller, Depends(_operator)]
