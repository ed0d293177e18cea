"""API keys: 256 random bits that only their owner knows; the database has their hash."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from service.database import Database, api_keys

SCOPES = {
    "jobs:read": "see jobs, events and logs",
    "jobs:write": "create, cancel, pause, resume, retry and delete jobs",
    "students:read": "download students",
    "metrics:read": "read the server's metrics",
}
TENANTS_SCOPES = ("jobs:read", "jobs:write", "students:read")
"""Those that concern nothing but the tenant's own."""
_PREFIX = "etd_"


@dataclass(frozen=True)
class Key:
    """What a key allows, without the key."""

    id: str
    name: str
    tenant: str
    scopes: frozenset[str]
    created: float
    expires: float | None
    revoked: float | None

    @property
    def valid(self) -> bool:
        return self.revoked is None and (self.expires is None or self.expires > time.time())


class Keys:
    """The keys of a server. A hash look-up is enough: nobody guesses 256 bits, and there is nothing to time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, tenant: str, scopes: Collection[str], *, days: float | None = None) -> tuple[str, Key]:
        """Make a key: (the secret, which is never seen again, and what it allows)."""
        secret = _PREFIX + secrets.token_urlsafe(32)
        now = time.time()
        key = Key(
            id=secrets.token_hex(6),
            name=name,
            tenant=tenant,
            scopes=frozenset(scopes),
            created=now,
            expires=None if days is None else now + days * 86400,
            revoked=None,
        )
        row = {**vars(key), "hash": _hash(secret), "scopes": " ".join(sorted(scopes))}
        with self._database.write() as connection:
            connection.execute(api_keys.insert().values(row))
        return secret, key

    def find(self, secret: str) -> Key | None:
        """The valid key of this secret."""
        query = sa.select(api_keys).where(api_keys.c.hash == _hash(secret))
        with self._database.look() as connection:
            row = connection.execute(query).mappings().first()
        key = _key(row) if row else None
        return key if key is not None and key.valid else None

    def all(self) -> list[Key]:
        """Every key that was ever made, the oldest first."""
        with self._database.look() as connection:
            return [
                _key(row) for row in connection.execute(sa.select(api_keys).order_by(api_keys.c.created)).mappings()
            ]

    def there_are(self) -> bool:
        """Whether a key was ever made; from then on, one is needed."""
        with self._database.look() as connection:
            return connection.scalar(sa.select(api_keys.c.id).limit(1)) is not None

    def revoke(self, key_id: str) -> Key | None:
        """End a key at once; none if there is none of that id. One that was revoked before stays so since then."""
        since = sa.func.coalesce(api_keys.c.revoked, time.time())
        change = api_keys.update().where(api_keys.c.id == key_id).values(revoked=since).returning(api_keys)
        with self._database.write() as connection:
            row = connection.execute(change).mappings().first()
        return _key(row) if row else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: sa.RowMapping) -> Key:
    values = {name: value for name, value in row.items() if name != "hash"}
    return Key(**{**values, "scopes": frozenset(values["scopes"].split())})
