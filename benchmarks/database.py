"""The databases and the broker of a measurement: new ones for each run."""

import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import create_engine

from benchmarks.contender import Kind, Place
from benchmarks.naive import Naive
from benchmarks.naive_broker import NaiveBroker
from benchmarks.worker import FlowKit, FlowKitFromBroker
from flowkit import sqlite_driver
from tests.services.postgresql import PostgreSQL
from tests.services.postgresql import find_binaries as postgresql_binaries
from tests.services.rabbitmq import RabbitMQ
from tests.services.rabbitmq import find_binaries as rabbitmq_binaries

NAME = "bench"
HERE = Path(__file__).parent


class Database(Protocol):
    """Where a run takes place."""

    name: str
    version: str
    naive: Kind
    """The naive loop there."""
    entries: Sequence[Kind]
    """The ways into FlowKit there."""

    def fresh(self) -> Place:
        """Throw what the last run left away, and return an empty place."""


class Sqlite:
    """A file. The store opens it with a write-ahead log and synchronous=FULL."""

    name = "SQLite"
    naive: Kind = Naive
    entries: Sequence[Kind] = (FlowKit,)

    def __init__(self, folder: Path) -> None:
        self.version: str = sqlite_driver().sqlite_version
        self._folder = folder

    def fresh(self) -> Place:
        shutil.rmtree(self._folder / NAME, ignore_errors=True)
        (self._folder / NAME).mkdir()
        return Place(f"sqlite:///{self._folder / NAME / 'store.db'}")


class Postgres:
    """A private server with fsync and synchronous_commit on."""

    name = "PostgreSQL"
    naive: Kind = Naive
    entries: Sequence[Kind] = (FlowKit,)

    def __init__(self, server: PostgreSQL) -> None:
        self._server = server
        self.version = str(self._ask("SHOW server_version")).split()[0]
        self._made = False

    def fresh(self) -> Place:
        if self._made:
            self._server.drop_database(NAME)
        self._made = True
        url = self._server.create_database(NAME)
        self._ask("CHECKPOINT")  # nobody pays for what the run before left to be written
        return Place(url, servers={"database": self._server.pid})

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


class Rabbit:
    """A private node of RabbitMQ beside that server: quorum queues between the flows."""

    name = "RabbitMQ + PostgreSQL"
    naive: Kind = NaiveBroker
    entries: Sequence[Kind] = (FlowKitFromBroker, FlowKit)

    def __init__(self, node: RabbitMQ, database: Postgres) -> None:
        self._node = node
        self._database = database
        self.version = f"{node.ctl('version').strip()} + {database.version}"
        self._run = 0

    def fresh(self) -> Place:
        place = self._database.fresh()
        if self._run:
            self._node.ctl("delete_vhost", str(self._run))
        self._run += 1
        self._node.ctl("add_vhost", str(self._run))
        self._node.ctl("set_permissions", "-p", str(self._run), "flowkit", ".*", ".*", ".*")
        return Place(place.database, self._node.url(vhost=str(self._run)), {**place.servers, "broker": self._node.pid})


@contextmanager
def databases(wanted: set[str]) -> Iterator[list[Database]]:
    """Those of the wanted that this machine has. Says which are left out."""
    with ExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="flowkit-bench-"))
        found: list[Database] = [Sqlite(Path(folder))] if "sqlite" in wanted else []
        if wanted & {"postgresql", "rabbitmq"} and postgresql_binaries() is None:
            print("PostgreSQL is skipped: it is not installed here; run tests/services/install")
        elif wanted & {"postgresql", "rabbitmq"}:
            server = opened.enter_context(closing(PostgreSQL()))
            server.start()
            postgres = Postgres(server)
            found += [postgres] if "postgresql" in wanted else []
            if "rabbitmq" in wanted and rabbitmq_binaries() is None:
                print("RabbitMQ is skipped: it is not installed here; run tests/services/install")
            elif "rabbitmq" in wanted:
                node = opened.enter_context(closing(RabbitMQ()))
                node.start()
                found.append(Rabbit(node, postgres))
        yield found


def circumstances() -> dict[str, Any]:
    """When, of what and on which machine something is measured: it goes with the results."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "fdatasync_ms": sync_ms(),
    }


def commit() -> str:
    """The commit that is checked out, with a + where its code was changed since. Empty where there is none."""

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", *words]
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", ":/flowkit", ":/benchmarks/*.py")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


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
