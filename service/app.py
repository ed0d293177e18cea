"""The web application: parts put together, and taken apart in the right order when the server goes."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.telemetry import TelemetryConfig

from etd_ds import __version__
from etd_ds.contract import errors
from service import audit, problems, tracing
from service.admission import Admission, JobRequest
from service.backlog import Backlog
from service.database import Database
from service.executors import Executor
from service.executors.local import LocalExecutor
from service.executors.slurm import SlurmExecutor
from service.extraction import Extractor
from service.extractions import Extractions
from service.keys import Keys
from service.limits import Limiter, Places
from service.metrics import AnswerMiddleware, Latencies
from service.outbox import Outbox
from service.presence import Presence
from service.publisher import Publisher
from service.queue import Queue
from service.routes import access, downloads, health, hub, jobs, watch, webhooks
from service.routes.context import Context
from service.scheduler import Scheduler, sweep
from service.settings import Settings
from service.storage import Bucket, Folder, Storage
from service.store import Store
from service.webhooks import Sender

log = logging.getLogger("etd_jobs")

_KEEPALIVE = (
    ((socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 60),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPINTVL), 15),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPCNT), 4),
)
"""Connections have it from the socket that listens: a reader that is gone without a word is noticed in two minutes."""

_TELEMETRY: TelemetryConfig = {
    "auto_configure": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "exclude": lambda scope: scope["path"].endswith(("/healthz", "/readyz", "/metrics")),
}


def create_app(settings: Settings) -> FastAPI:
    """The application of one server. Its folders, threads and worker begin with its lifespan."""
    bucket = Bucket(settings.artifacts, expires=settings.redirect) if settings.artifacts else None
    storage: Storage = bucket or Folder()
    settings.prepare()
    database = Database(settings.database_url)
    database.create()
    store, keys = Store(database), Keys(database)
    extractor, latencies = Extractor(settings), Latencies()
    jobs_queue = Queue(database)
    scheduler = Scheduler(settings, jobs_queue, _executor(settings))
    extractions = Extractions(database, store)
    backlog = Backlog(settings, store, extractions, extractor, scheduler.wake)
    admission = Admission(settings, store, storage, jobs_queue, extractor, backlog)
    publisher = Publisher(settings, store, bucket, admission.discard) if bucket or settings.keep_days else None
    outbox = Outbox(database)
    sender = Sender(settings, outbox)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        extractor.warm()
        here = [Presence(settings.server_lock), Presence(settings.worker_lock)]
        if here[0].alone:
            sweep(settings, store, storage)
            extractions.release()
        scheduler.start(alone=here[1].alone)
        backlog.start()
        for presence in here:
            presence.settle()
        if publisher is not None:
            publisher.start()
        sending = asyncio.create_task(sender.run())
        yield
        sending.cancel()
        if publisher is not None:
            publisher.close()
        scheduler.drain()
        backlog.close()
        extractor.close()
        scheduler.close()
        database.close()
        tracing.close()
        for presence in here:
            presence.close()

    app = FastAPI(title="etd-ds", version=__version__, lifespan=lifespan, telemetry=_TELEMETRY)
    app.state.context = Context(
        settings=settings,
        store=store,
        storage=storage,
        publisher=publisher,
        queue=jobs_queue,
        keys=keys,
        outbox=outbox,
        limiter=Limiter(settings.rate),
        streams=Places(settings.streams),
        latencies=latencies,
        extractor=extractor,
        admission=admission,
        wake=scheduler.wake,
        scheduler_seen=lambda: scheduler.last_round,
        version=__version__,
    )
    app.state.register = scheduler.register
    app.state.drain = [scheduler.drain, backlog.drain]
    app.add_middleware(AnswerMiddleware, tell=(latencies.answered, audit.answered))
    problems.install(app)
    for room in (health, jobs, watch, downloads, webhooks):
        app.include_router(room.router)
        app.include_router(room.router, prefix="/v1", include_in_schema=False)
    app.include_router(hub.router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _executor(settings: Settings) -> Executor | None:
    """What runs jobs here; none for a server that leaves that to workers."""
    if not settings.worker:
        return None
    return SlurmExecutor(settings) if settings.slurm else LocalExecutor(settings)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The API's description. The body of `POST /jobs` is parsed by ourselves, so its schema is added here."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        body = JobRequest.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        schemas |= {**body.pop("$defs", {}), "JobRequest": body}
        for operations in schema["paths"].values():
            for operation in operations.values():
                if "422" in operation["responses"]:
                    operation["responses"] |= {str(code): one for code, one in problems.documented(422).items()}
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        app.openapi_schema = schema
    return app.openapi_schema


def serve(settings: Settings) -> None:
    """Run a server until SIGTERM or SIGINT. Jobs that run go on without it.

    Raises `EtdError` when it would listen to other machines and no key was made, or when its name is taken.
    """
    app = create_app(settings)
    if settings.host not in access.LOOPBACK and not app.state.context.keys.there_are():
        place = "--database URL" if settings.database else f"--data-dir {settings.data_dir}"
        raise errors.EtdError(
            f"--host: {settings.host} is open to other machines, and no API key was made; make one with "
            f"`etd-jobs keys create NAME {place}`, or listen on 127.0.0.1",
            field="host",
            wanted="127.0.0.1, or an API key",
            got=settings.host,
        )

    app.state.register()

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.context.draining = True
            for drain in app.state.drain:
                drain()
            super().handle_exit(sig, frame)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            for server in self.servers:
                for one, (option, value) in itertools.product(server.sockets, _KEEPALIVE):
                    one.setsockopt(*option, value)
                host, port = server.sockets[0].getsockname()[:2]
                log.info(
                    "listening on http://%s:%s, data in %s, %s slots", host, port, settings.data_dir, settings.slots
                )

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,  # so that what it says has the form of our lines
        log_level="warning",
        timeout_graceful_shutdown=10,
        server_header=False,
    )
    Server(config).run()
