"""The secret by which a tenant knows that a webhook comes from here."""

from __future__ import annotations

from fastapi import APIRouter

from service.problems import documented
from service.routes.access import Writer

router = APIRouter(tags=["webhooks"])


@router.get("/webhooks/secret", responses=documented(401, 403, 429))
def webhook_secret(who: Writer) -> dict[str, str]:
    """The secret with which webhooks are signed by the Standard Webhooks scheme."""
    return {"secret": who.here.outbox.secret(who.tenant)}


@router.post("/webhooks/secret", responses=documented(401, 403, 429))
def new_webhook_secret(who: Writer) -> dict[str, str]:
    """A new secret, which signs from now on, also what waits to be sent again."""
    return {"secret": who.here.outbox.secret(who.tenant, new=True)}
