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
"""Comparisons of two connections: other clients of a pooler may take the shared session in between."""


def open_store(url: str, clock: Clock, check: bool = True, create: bool = True) -> SqlStore:
    """Open the PostgreSQL store of a URL; with `check`, refuse a schema of another version. Never creates one. Blocks.

    Raises ConfigError, or StoreUnavailable if the server cannot be reached or refuses the connection.
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
        # The supervisor restarts a worker that cannot reach the server, but not one with a wrong configuration.
        raise (StoreUnavailable if isinstance(error, OperationalError | StoreUnavailable) else ConfigError)(
            f"FLOWKIT_DATABASE_URL is {mask(url)}, which cannot be reached: {cause}; check host, user, password and "
            "database"
        ) from None
    return store


def _look(dialect: PostgresDialect, url: str) -> None:
    """Raise ConfigError if commits are not durable, or if there is a pooler that the URL does not name."""
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
        # A pooler answers for the server. If it keeps sessions, two connections never have the same one.
        with dialect.engine.connect() as other:
            if any(_session(connection) == _session(other) for _ in range(LOOKS)):
                raise ConfigError(f"FLOWKIT_DATABASE_URL is {mask(url)}: {POOLER}")


def _session(connection: sqlalchemy.Connection) -> object:
    return connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
