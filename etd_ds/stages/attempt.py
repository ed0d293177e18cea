"""One trainer's claim on a run folder: it alone may write there, until a newer attempt starts."""

from __future__ import annotations

import json
import os
import secrets
import socket

from etd_ds.contract import errors, events, rundir


class Attempt:
    """Made on rank 0 at the start. From then on every older attempt is refused when it next wants to write."""

    def __init__(self, run: rundir.RunDir) -> None:
        self._run = run
        self._token = secrets.token_hex(16)
        claim = {"token": self._token, "host": socket.gethostname(), "pid": os.getpid()}
        rundir.publish_json(run.attempt, claim)

    def guard(self) -> None:
        """Raise `RunFolderError` if a newer attempt has begun on this folder."""
        try:
            holder = json.loads(self._run.attempt.read_bytes())["token"]
        except (OSError, ValueError, KeyError):
            holder = None
        if holder != self._token:
            raise errors.RunFolderError(
                f"{self._run.root}: a newer attempt trains in this folder; this one ends without writing"
            )

    def say(self, event: events.Event) -> None:
        """Append an event, unless a newer attempt has begun."""
        self.guard()
        events.append(self._run.events, event)
