"""What the server is, and whether it lives and can work."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request, Response

from service.routes.context import Here, prefix

router = APIRouter(tags=["server"])

_SCHEDULER_SILENT_SECONDS = 60.0


@router.get("/")
def root(request: Request, here: Here) -> dict[str, Any]:
    """The server's name and where everything is."""
    base = prefix(request)
    names = {"jobs": f"{base}/jobs", "health": f"{base}/healthz", "openapi": "/openapi.json", "docs": "/docs"}
    return {"name": "etd-ds", "version": here.version, "links": names}


@router.get("/healthz")
def health(here: Here, response: Response) -> dict[str, Any]:
    """200 while the server lives and its scheduler works; `ready` also says that extraction would begin at once."""
    alive = time.time() - here.scheduler_seen() < _SCHEDULER_SILENT_SECONDS
    response.status_code = 200 if alive else 503
    return {
        "status": "ok" if alive else "scheduler_silent",
        "extraction_ready": here.extractor.ready,
        "draining": here.draining,
        "slots": {"total": here.settings.slots, "free": here.store.free_slots()},
        "jobs": here.store.counts(),
    }
