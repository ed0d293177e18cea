"""A worker: it runs jobs of a database that others serve. Like a server it may be lost at any time."""

from __future__ import annotations

import logging
import signal
from types import FrameType

from etd_ds.contract import errors
from service import tracing
from service.database import Database
from service.executors.local import LocalExecutor
from service.presence import Presence
from service.queue import Queue
from service.scheduler import Scheduler
from service.settings import Settings

log = logging.getLogger("etd_jobs")


def work(settings: Settings) -> int:
    """Run jobs until SIGTERM or SIGINT, which hands them back: they write a checkpoint, and others go on with them.

    A second signal leaves at once; the trainers go on, and the next worker of this name looks after them again.
    Returns 0, or 1 if it ended without having been asked. Raises `EtdError`.
    """
    if not settings.server_lock.exists():
        raise errors.EtdError(
            f"--data-dir: wanted the data folder of a server, got {settings.data_dir} without a "
            f"{settings.server_lock.name}; is the shared folder mounted, and was a server started on it?",
            field="data_dir",
            wanted="the data folder of a server",
            got=str(settings.data_dir),
        )
    settings.prepare()
    database = Database(settings.database_url)
    database.create()
    presence = Presence(settings.worker_lock)
    scheduler = Scheduler(settings, Queue(database), LocalExecutor(settings))
    asked = False

    def leave(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if asked:
            log.info("leaving at once; the trainers go on")
            scheduler.left.set()
            return
        asked = True
        log.info("handing back all jobs; another signal leaves at once")
        scheduler.hand_back()

    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, leave)
    scheduler.start(alone=presence.alone)
    presence.settle()
    log.info("worker %s runs jobs of %s, %s slots", settings.worker, settings.data_dir, settings.slots)
    scheduler.left.wait()
    scheduler.close()
    database.close()
    tracing.close()
    presence.close()
    return 0 if asked else 1
