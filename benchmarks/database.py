"""The databases that the work is measured on: a fresh one for each run."""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from sqlalchemy import create_engine

from flowkit.store.sqlite import driver
from tests.services.postgresql import PostgreSQL, find_binaries

NAME = "bench"


class Database(Protocol):
    """Where a run takes place."""

    name: str
    version: str
    pid: int | None
    """The server's process, if there is one."""

    def fresh(self) -> str:
        """Throw the last run's database away, and return the URL of an empty one."""


class Sqlite:
    """A file. The store opens it with a write-ahead log and synchronous=FULL."""

    name = "SQLite"
    pid: int | None = None

    def __init__(self, folder: Path) -> None:
        self.version: str = driver().sqlite_version
        self._folder = folder

    def fresh(self) -> str:
        shutil.rmtree(self._folder / NAME, ignore_errors=True)
        (self._folder / NAME).mkdir()
        return f"sqlite:///{self._folder / NAME / 'store.db'}"


class Postgres:
    """A private server with fsync and synchronous_commit on."""

    name = "PostgreSQL"

    def __init__(self, server: PostgreSQL) -> None:
        self._server = server
        self.pid: int | None = server.pid
        self.version = str(self._ask("SHOW server_version")).split()[0]
        self._made = False

    def fresh(self) -> str:
        if self._made:
            self._server.drop_database(NAME)
        self._made = True
        url = self._server.create_database(NAME)
        self._ask("CHECKPOINT")  # nobody pays for what the run before left to be written
        return url

    def _ask(self, statement: str) -> object:
        engine = create_engine(
            self._server.url("postgres").replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
        )
        try:
            with engine.connect() as connection:
                result = connection.exec_driver_sql(statement)
                return result.scalar() if result.returns_rows else None
        finally:
            engine.dispose()


@contextmanager
def databases(wanted: set[str]) -> Iterator[list[Database]]:
    """Those of the wanted that this machine has. Says which are left out."""
    with tempfile.TemporaryDirectory(prefix="flowkit-bench-") as folder:
        found: list[Database] = [Sqlite(Path(folder))] if "sqlite" in wanted else []
        if "postgresql" not in wanted:
            yield found
        elif find_binaries() is None:
            print("PostgreSQL is skipped: it is not installed here; run tests/services/install")
            yield found
        else:
            server = PostgreSQL()
            try:
                server.start()
                yield [*found, Postgres(server)]
            finally:
                server.close()


def sync_ms() -> float:
    """Milliseconds that one small write takes to reach the disk here: the median of many."""
    times = []
    with tempfile.NamedTemporaryFile(prefix="flowkit-bench-") as file:
        for _ in range(200):
            os.pwrite(file.fileno(), b"x" * 4096, 0)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return round(statistics.median(times) * 1e3, 3)
