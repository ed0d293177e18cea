"""The database's tables, and how to reach it: SQLite inside the data folder, or PostgreSQL by URL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from etd_ds.contract import errors
from service import status as statuses

_MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 704_138
"""Any number, the same for all servers of a PostgreSQL database."""

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(40), nullable=False, unique=True),
    sa.Column("tenant", sa.String(64), nullable=False, index=True),
    sa.Column("status", sa.String(16), nullable=False, index=True),
    sa.Column("wish", sa.String(16), nullable=False, default=""),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("labels", sa.Text, nullable=False, default="{}"),
    sa.Column("priority", sa.Integer, nullable=False, default=0),
    sa.Column("ranks", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("retries", sa.Integer, nullable=False, default=0),
    sa.Column("not_before", sa.Float, nullable=False, default=0.0),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("started", sa.Float),
    sa.Column("ended", sa.Float),
    sa.Column("error_code", sa.String(64), nullable=False, default=""),
    sa.Column("error_message", sa.Text, nullable=False, default=""),
    sa.Column("lease_owner", sa.String(40), nullable=False, default=""),
    sa.Column("lease_until", sa.Float, nullable=False, default=0.0),
    sa.Column("request_key", sa.String(255)),
    sa.Column("request_hash", sa.String(64), nullable=False, default=""),
    sa.Column("webhook", sa.Text, nullable=False, default="", server_default=""),
    sa.Column("webhook_events", sa.Text, nullable=False, default="", server_default=""),
    sa.Column("webhook_offset", sa.BigInteger, nullable=False, default=-1, server_default="0", index=True),
    sa.Column("worker", sa.String(64), nullable=False, default="", server_default=""),
    sa.Column("trainer", sa.String(64), nullable=False, default="", server_default=""),
    sa.Column("alike", sa.String(64), nullable=False, default="", server_default=""),
    sa.Column("apart", sa.Boolean, nullable=False, default=False, server_default=sa.false()),
    sa.UniqueConstraint("tenant", "request_key"),
    sa.CheckConstraint(f"status in {statuses.STATUSES}", name="known_status"),
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("slots", sa.Integer, nullable=False),
    sa.Column("lost_after", sa.Float, nullable=False),
    sa.Column("seen", sa.Float, nullable=False),
    sa.Column("draining", sa.Boolean, nullable=False),
)

slots = sa.Table(
    "slots",
    metadata,
    sa.Column("worker", sa.String(64), sa.ForeignKey("workers.name"), primary_key=True),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("job", sa.String(40), sa.ForeignKey("jobs.id"), index=True),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("expires", sa.Float),
    sa.Column("revoked", sa.Float),
)

webhook_secrets = sa.Table(
    "webhook_secrets",
    metadata,
    sa.Column("tenant", sa.String(64), primary_key=True),
    sa.Column("secret", sa.String(64), nullable=False),
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("job", sa.String(40), nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False, default=0),
    sa.Column("not_before", sa.Float, nullable=False, index=True),
)


class Database:
    """An engine with two kinds of transactions. May be used from any thread."""

    def __init__(self, url: str) -> None:
        try:
            # an error that is logged must not show the values: addresses of webhooks, what they are signed with
            self.engine = sa.create_engine(url, pool_pre_ping=True, pool_size=16, max_overflow=48, hide_parameters=True)
        except (sa.exc.ArgumentError, ImportError):
            wanted = "sqlite:///FILE, or postgresql+psycopg://USER@HOST/NAME with `pip install 'etd-ds[postgres]'`"
            got = f"{url.partition(':')[0]}:…"  # behind it may stand a password
            raise errors.EtdError(
                f"--database: wanted {wanted}, got {got}", field="database", wanted=wanted, got=got
            ) from None
        self.sqlite = self.engine.dialect.name == "sqlite"
        if self.sqlite:
            _embed(self.engine)

    def create(self) -> None:
        """Bring the tables to the newest version; servers that start together do it one after the other.

        Raises `EtdError` when the database does not answer.
        """
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        with self._connect() as connection:
            if self.sqlite:  # it changes a table by making a new one, and must not take the old one's rows for lost
                connection.connection.cursor().execute("PRAGMA foreign_keys=OFF")
            connection.detach()
            with connection.begin():
                if not self.sqlite:
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
                config.attributes["connection"] = connection
                command.upgrade(config, "head")

    def _connect(self) -> sa.Connection:
        try:
            return self.engine.connect()
        except sa.exc.OperationalError as error:
            url = self.engine.url.render_as_string(hide_password=True)
            message = f"--database: wanted one that answers, got {url}: {' '.join(str(error.orig).split())}"
            raise errors.EtdError(message, field="database", wanted="a database that answers", got=url) from None

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that changes something."""
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def look(self) -> Iterator[sa.Connection]:
        """A transaction that only reads; writers do not wait for it."""
        with self.engine.connect() as connection:
            yield connection.execution_options(only_reads=True)

    def locked(self, query: sa.Select[Any], *, or_skipped: bool = False, of: sa.Table | None = None) -> sa.Select[Any]:
        """SQLite locks the whole file at the transaction's beginning; PostgreSQL locks these rows.

        `or_skipped`: rows that another transaction has locked are left out instead of waited for. `of`: only those of
        one of the query's tables.
        """
        return query if self.sqlite else query.with_for_update(skip_locked=or_skipped, of=of)

    def now(self, connection: sa.Connection) -> float:
        """Seconds since 1970 by one clock for all: machines that share PostgreSQL may disagree in theirs."""
        if self.sqlite:
            return time.time()
        return float(connection.scalar(sa.select(sa.func.extract("epoch", sa.func.clock_timestamp()))) or 0.0)

    def close(self) -> None:
        self.engine.dispose()


def _embed(engine: sa.Engine) -> None:
    """SQLite as a server's store: write-ahead log, full sync, and writers that queue up instead of failing."""
    file = Path(engine.url.database or "")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)  # it holds what webhooks are signed with; SQLite's other files get the same mode

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # a lock taken at the beginning is never upgraded, so no transaction fails in its middle
        reads = connection.get_execution_options().get("only_reads")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
