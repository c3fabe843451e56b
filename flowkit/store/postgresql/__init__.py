"""Opens the PostgreSQL store of a URL."""

import importlib.util
from typing import Any

import sqlalchemy
from sqlalchemy.exc import OperationalError

from flowkit.errors import ConfigError, StoreUnavailable
from flowkit.ports import Clock
from flowkit.store.postgresql.dialect import POOLER, PostgresDialect, first_line
from flowkit.store.sql import SqlStore
from flowkit.url import mask

LOOKS = 3
"""So many times two connections are compared: others use the pooler as well."""


def open_store(url: str, clock: Clock, check: bool = True, create: bool = True) -> SqlStore:
    """Open the PostgreSQL store of a URL; with `check`, refuse a schema of another version. Never creates one.

    Raises ConfigError, or StoreUnavailable when the server does not let us in.
    """
    if importlib.util.find_spec("psycopg") is None:
        raise ConfigError(
            "FLOWKIT_DATABASE_URL names PostgreSQL, whose driver is missing; pip install 'flowkit-runtime[postgresql]'"
        )
    store = None
    try:
        dialect = PostgresDialect(url)
        store = SqlStore(dialect, clock)
        _look(dialect, url)
        if check:
            store.schema.check()
    except Exception as error:
        if store is not None:
            store.close()
        if isinstance(error, ConfigError):
            raise
        cause = first_line(getattr(error, "orig", None) or error)
        # A worker that starts while the server is away is started again; one that is configured wrongly is not.
        raise (StoreUnavailable if isinstance(error, OperationalError | StoreUnavailable) else ConfigError)(
            f"FLOWKIT_DATABASE_URL is {mask(url)}, which cannot be reached: {cause}; check host, user, password and "
            "database"
        ) from None
    return store


def _look(dialect: PostgresDialect, url: str) -> None:
    """Raise ConfigError where commits are not durable, or behind a pooler that the URL does not tell of."""
    with dialect.engine.connect() as connection:
        durable, session = connection.exec_driver_sql(
            "SELECT current_setting('synchronous_commit'), pg_backend_pid()"
        ).one()
        if durable in ("off", "local"):
            raise ConfigError(
                f"FLOWKIT_DATABASE_URL is {mask(url)}, which has synchronous_commit = {durable}: acknowledged commits "
                "can be lost; set it to on for this database or user"
            )
        driver: Any = connection.connection.driver_connection
        if dialect.pooled or driver.info.backend_pid == session:
            return
        # Somebody answers for the server. Where that keeps sessions, two connections never have the same one.
        with dialect.engine.connect() as other:
            if any(_session(connection) == _session(other) for _ in range(LOOKS)):
                raise ConfigError(f"FLOWKIT_DATABASE_URL is {mask(url)}: {POOLER}")


def _session(connection: sqlalchemy.Connection) -> object:
    return connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
