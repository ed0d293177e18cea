"""What the server is, and whether it lives and can work."""

from __future__ import annotations

import shutil
import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from etd_ds.contract import events
from service import tail
from service.metrics import gauge
from service.problems import documented
from service.routes.access import Operator
from service.routes.context import Context, Here, prefix

router = APIRouter(tags=["server"])

_SCHEDULER_SILENT_SECONDS = 60.0
_DISK_LOW_BYTES = 256 << 20


@router.get("/")
def root(request: Request, here: Here) -> dict[str, Any]:
    """The server's name and where everything is."""
    base = prefix(request)
    names = {"jobs": f"{base}/jobs", "health": f"{base}/healthz", "openapi": "/openapi.json", "docs": "/docs"}
    return {"name": "etd-ds", "version": here.version, "links": names}


@router.get("/healthz", responses={503: {"description": "The scheduler is silent"}})
def health(here: Here, response: Response) -> dict[str, str]:
    """200 while the server lives and its scheduler works. It needs no key, so it says no more."""
    alive = _scheduler_works(here)
    response.status_code = 200 if alive else 503
    return {"status": "ok" if alive else "scheduler_silent"}


@router.get("/readyz", responses={503: {"description": "Not yet, or not now"}})
def ready(here: Here, response: Response) -> dict[str, bool]:
    """200 when a new job would be taken at once: database, disk, scheduler and extraction worker are there."""
    parts = {
        "scheduler": _scheduler_works(here),
        "extraction": here.extractor.ready,
        "disk": shutil.disk_usage(here.settings.data_dir).free > _DISK_LOW_BYTES,
        "accepting": not here.draining,
    }
    response.status_code = 200 if all(parts.values()) else 503
    return {"ready": all(parts.values()), **parts}


def _scheduler_works(here: Context) -> bool:
    return time.time() - here.scheduler_seen() < _SCHEDULER_SILENT_SECONDS


@router.get("/metrics", response_class=PlainTextResponse, responses=documented(401, 403))
def metrics(who: Operator) -> PlainTextResponse:
    """Numbers for Prometheus: queue, slots, speed, failures by cause, and how long answers took."""
    here = who.here
    oldest, waited = here.store.waits()
    workers = here.queue.workers()
    there = [worker for worker in workers if worker.there]
    total, free = sum(worker.slots for worker in there), sum(worker.free for worker in there)
    publisher = here.publisher if here.settings.artifacts else None
    speed = 0.0
    for job in here.store.page(status=("running",), limit=500):
        step = tail.last_step(here.run(job).events)
        speed += step.tokens_per_second if isinstance(step, events.Step) else 0.0
    lines = [
        *gauge("etd_jobs", (({"status": status}, count) for status, count in here.store.counts().items())),
        *gauge("etd_failed_jobs", (({"code": code}, count) for code, count in here.store.failures().items())),
        *gauge("etd_slots", [({"state": "free"}, free), ({"state": "used"}, total - free)]),
        *gauge("etd_trainers", [({}, here.queue.running())]),
        *gauge("etd_workers", [({"state": "there"}, len(there)), ({"state": "silent"}, len(workers) - len(there))]),
        *gauge("etd_queue_oldest_seconds", [({}, oldest)]),
        *gauge("etd_queue_wait_seconds_mean_day", [({}, waited)]),
        *gauge("etd_tokens_per_second", [({}, speed)]),
        *gauge("etd_webhooks_waiting", [({}, here.outbox.waiting())]),
        *gauge("etd_extraction_ready", [({}, here.extractor.ready)]),
        *gauge("etd_disk_free_bytes", [({}, shutil.disk_usage(here.settings.data_dir).free)]),
        *(gauge("etd_unpublished_seconds", [({}, time.time() - publisher.up_to_date)]) if publisher else ()),
        *here.latencies.lines(),
    ]
    return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4; charset=utf-8")
