"""The audit log: one line for whatever may change something, done or refused, that says who asked for what."""

from __future__ import annotations

import logging

from starlette.types import Scope

log = logging.getLogger("etd_jobs.audit")

_LONGEST = 64


def note(
    verb: str, status: int, *, tenant: str | None, key: str | None, name: str | None, job: str | None = None
) -> None:
    """Write a line. `status` is the answer's; `key` and `name` are the key's id and name, never its secret."""
    facts = {"verb": verb, "status": status, "tenant": tenant, "key": key, "key_name": name}
    # quoted, since job and name may hold anything
    said = " ".join(f"{fact}={value!r}" for fact, value in {**facts, "job": job}.items() if value is not None)
    log.info("%s", said, extra={"job": job, "audit": facts})


def answered(scope: Scope, status: int, _seconds: float) -> None:
    """Write the line of a request that is answered, if its route changes something. Nobody is known without a key."""
    state = scope.get("state", {})
    if not state.get("changes"):
        return
    caller = state.get("caller")
    tenant, key, name = (caller.tenant, caller.key or None, caller.name or None) if caller else (None, None, None)
    job = state.get("made") or scope["path_params"].get("job_id", "")[:_LONGEST] or None
    note(scope["route"].name, status, tenant=tenant, key=key, name=name, job=job)
