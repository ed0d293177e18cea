"""Sends the outbox's messages, signed by the Standard Webhooks scheme: at least once, by one server at a time."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import random
import ssl
import time
from collections import Counter

import anyio
import httpcore
from sqlalchemy.exc import SQLAlchemyError

from etd_ds import __version__
from etd_ds.contract import events, rundir
from service.addresses import PublicNetwork
from service.outbox import Delivery, Outbox
from service.settings import Settings

log = logging.getLogger("etd_jobs")

_AT_ONCE, _OF_ONE = 16, 4
"""Messages under way at once; and of one tenant, when more are taken, so that silent receivers delay no other's."""
_SECONDS = 15.0
"""What a receiver has to answer, from the look-up of its name to its status."""
_TRIES = 8
_LONGEST_WAIT = 6 * 3600.0
_GONE = 410
_UNREAD = 1 << 16
"""Bytes of events that may be read again, so that not every one of them is a change to the database."""


def sign(secret: str, message_id: str, timestamp: int, body: str) -> str:
    """The `webhook-signature` of a message [Standard Webhooks 1.0, symmetric]."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{message_id}.{timestamp}.{body}".encode(), hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


class Sender:
    """One task of a server's event loop. What it was at when the server died is due again a little later."""

    def __init__(self, settings: Settings, outbox: Outbox) -> None:
        self._settings = settings
        self._outbox = outbox
        self._under_way: dict[asyncio.Task[None], str] = {}
        """What is being sent, and for which tenant."""

    async def run(self) -> None:
        """Send what is due until cancelled."""
        tls = ssl.create_default_context()
        network = PublicNetwork(self._settings.webhook_hosts)
        pool = httpcore.AsyncConnectionPool(
            ssl_context=tls, network_backend=network, max_connections=_AT_ONCE, max_keepalive_connections=0
        )
        trouble: type[Exception] | None = None
        while True:
            try:
                await asyncio.to_thread(self._look_for_checkpoints)
                free = min(_OF_ONE, _AT_ONCE - len(self._under_way))
                busy = [tenant for tenant, count in Counter(self._under_way.values()).items() if count >= _OF_ONE]
                due = await asyncio.to_thread(self._outbox.take, free, 4 * _SECONDS, but=busy) if free else []
                trouble = None
            except (OSError, SQLAlchemyError) as error:  # a full disk, a database that is away: both may come back
                if type(error) is not trouble:  # what lasts is said once, not at every tick
                    log.exception("webhooks cannot be sent just now")
                trouble, due = type(error), []
            for message in due:
                task = asyncio.create_task(self._deliver(pool, message))
                self._under_way[task] = message.tenant
                task.add_done_callback(self._under_way.pop)
            await asyncio.sleep(0 if due else self._settings.tick)

    async def _deliver(self, pool: httpcore.AsyncConnectionPool, message: Delivery) -> None:
        try:
            secret = await asyncio.to_thread(self._outbox.secret, message.tenant)
            answer = await self._post(pool, message, secret)
            if isinstance(answer, int) and 200 <= answer < 300:
                await asyncio.to_thread(self._outbox.done, message)
            elif answer == _GONE or message.tries >= _TRIES:
                self._log(message, f"{answer}, given up after {message.tries} tries")
                await asyncio.to_thread(self._outbox.done, message)
            else:
                wait = min(self._settings.webhook_backoff * 4 ** (message.tries - 1), _LONGEST_WAIT)
                self._log(message, f"{answer}, again in {wait:.0f} s")
                await asyncio.to_thread(self._outbox.later, message, wait * random.uniform(0.8, 1.2))
        except (OSError, SQLAlchemyError):
            log.exception("a webhook's outcome was not written down, so it is sent again")

    async def _post(self, pool: httpcore.AsyncConnectionPool, message: Delivery, secret: str) -> int | str:
        """The receiver's status, or what went wrong. Redirects are not followed, and no body is read."""
        now = int(time.time())
        headers: dict[str | bytes, str | bytes] = {
            "Content-Type": "application/json",
            "User-Agent": f"etd-ds/{__version__}",
            "webhook-id": message.id,
            "webhook-timestamp": str(now),
            "webhook-signature": sign(secret, message.id, now, message.body),
        }
        try:
            with anyio.fail_after(_SECONDS):
                async with pool.stream("POST", message.url, headers=headers, content=message.body.encode()) as response:
                    return int(response.status)
        except TimeoutError:
            return f"no answer within {_SECONDS:.0f} s"
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            return type(error).__name__ + (f" ({error})" if isinstance(error, httpcore.ConnectError) else "")

    def _log(self, message: Delivery, outcome: str) -> None:
        """Without the address: it may hold a secret of its receiver."""
        log.warning("webhook %s of %s: %s", message.id, message.job, outcome, extra={"job": message.job})

    def _look_for_checkpoints(self) -> None:
        for job_id, offset in self._outbox.watched():
            run = rundir.RunDir(self._settings.runs / job_id)
            found, end = [], offset
            for line in events.lines(run.events, offset):
                end = line.end
                if '"checkpoint"' in line.text:
                    try:
                        event = events.parse(line.text)
                    except ValueError:
                        continue
                    if isinstance(event, events.Checkpoint):
                        found.append(event)
            if found or end - offset > _UNREAD:
                self._outbox.saw(job_id, offset, end, found)
