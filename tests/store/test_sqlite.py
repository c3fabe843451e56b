"""SQLite: locks, the log, syncs and forks: rows 39 to 42 of the failures."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text

from flowkit import StoreUnavailable
from flowkit.message import new_id
from flowkit.ports import Copy, WorkerInfo
from flowkit.services import SystemClock, connect, open_store
from flowkit.settings import Settings
from flowkit.store import sqlite
from flowkit.store.library import sqlite_driver
from flowkit.store.postgresql.listener import key
from flowkit.store.sqlite import SqliteDialect, safe_wal
from flowkit.testing import Harness
from flowkit.testing.conformance import FLOW, message
from tests.conftest import PROOF
from tests.support.databases import chain, checked, prepared, working
from tests.support.shop import Order, new_app
from tests.support.waiting import wait_until

pytestmark = pytest.mark.migrated


@pytest.mark.timeout(900)
def test_row_39_many_writers_leak_no_lock_errors(sqlite_url: str) -> None:
    services = prepared(sqlite_url)
    app = new_app()
    orders = chain(app)
    errors: list[BaseException] = []
    end = time.monotonic() + (60 if PROOF else 3)

    def write(writer: int) -> None:
        number = 0
        try:
            while time.monotonic() < end:
                app.publish(orders, Order(name=f"{writer}-{number}"))
                number += 1
        except BaseException as error:
            errors.append(error)
        sent.append(number)

    sent: list[int] = []
    with working(app, services):
        writers = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in writers:
            thread.start()
        for thread in writers:
            thread.join(120)
        wait_until(lambda: sum(services.store.ledger.pending(list(app.flows))) == 0, 600)
    services.close()
    assert errors == []
    checked(sqlite_url, list(app.flows), 2 * sum(sent))


@pytest.mark.parametrize("there", [False, True], ids=["schema", "tables"])
def test_row_39_a_lock_held_too_long_at_the_start_is_a_store_that_is_away(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
    settings, app = Settings(database_url=sqlite_url, broker_url=""), new_app()
    app.flow("orders", name="accept")(lambda order: None)
    if there:
        connect(settings).close()
    holder = sqlite_driver().connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match=r"database is locked.*held"):
        app.connect(connect(settings))
    holder.execute("ROLLBACK")
    holder.close()
    app.connect(connect(settings))
    app.publish("orders", {})
    app.close()


def test_row_40_the_log_is_truncated_once_a_long_reader_is_gone(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "WAL_BYTES", 1_000_000)
    services = prepared(sqlite_url)
    store: Any = services.store
    log = tmp_path / "flowkit.db-wal"
    reader = sqlite_driver().connect(tmp_path / "flowkit.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM flowkit_messages").fetchone()
    for _ in range(50):
        with store.unit(FLOW) as unit:
            unit.stage([Copy(new_id(), message(b"x" * 20_000), FLOW) for _ in range(5)])
            unit.commit()
    assert log.stat().st_size > 4_000_000, "the reader pins the log"
    reader.execute("ROLLBACK")
    reader.close()
    store.dialect.tidy()
    assert log.stat().st_size < 1_000_000
    services.close()


COMMITS = 25
COMMITTER = f"""
import sys
from flowkit.services import open_store
from flowkit.settings import Settings
from flowkit.ports import Tally
store = open_store(Settings(database_url=sys.argv[1]))
print("begin", flush=True)
for number in range({COMMITS}):
    with store.unit("kit.flow") as unit:
        unit.count({{"kit.flow": Tally(accepted=1)}})
        unit.commit()
"""


def test_row_41_every_commit_is_one_sync_to_disk(sqlite_url: str, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        missing = "strace is not installed: run tests/services/install"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    prepared(sqlite_url).close()
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-e", "trace=fsync,fdatasync,write", "-o", str(trace)]
    subprocess.run([*command, sys.executable, "-c", COMMITTER, sqlite_url], check=True, stdout=subprocess.DEVNULL)
    calls = trace.read_text().split('write(1, "begin')[1].splitlines()
    syncs = sum("fsync(" in call or "fdatasync(" in call for call in calls)
    assert syncs >= COMMITS


def test_row_41_synchronous_is_full(sqlite_url: str) -> None:
    services = prepared(sqlite_url)
    store: Any = services.store
    with store.unit("") as unit:
        assert unit.read("PRAGMA synchronous") == [(2,)], "FULL"
        assert unit.read("PRAGMA journal_mode") == [("wal",) if safe_wal(sqlite_driver()) else ("delete",)]
    services.close()


def test_row_42_an_unsafe_sqlite_keeps_no_write_ahead_log(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {(3, 40, 1): False, (3, 51, 2): False, (3, 51, 3): True, (3, 53, 0): True}
    for version, safe in versions.items():
        assert safe_wal(type("Module", (), {"sqlite_version_info": version})) is safe  # type: ignore[arg-type]
    monkeypatch.setattr(sqlite, "safe_wal", lambda module: False)
    dialect = SqliteDialect(str(tmp_path / "old.db"), SystemClock())
    with dialect.engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "delete"
    dialect.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_row_42_a_store_that_was_opened_before_a_fork_is_refused_after_it(database_url: str) -> None:
    """Two processes would speak on one connection to PostgreSQL, and SQLite's locks do not survive a fork."""
    services, app = prepared(database_url), new_app()
    store: Any = services.store
    orders = chain(app)
    app.connect(services)
    app.publish(orders, Order(name="before"))
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            app.publish(orders, Order(name="child"))
            os.write(tell, b"it used what its parent has open")
        except BaseException as error:
            os.write(tell, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    said = os.read(told, 1000).decode()
    os.waitpid(child, 0)
    os.close(told)
    os.close(tell)
    app.publish(orders, Order(name="after"))
    assert store.ledger.balances()["shop.accept"].accepted == 2
    services.close()
    assert said.startswith("ConfigError: "), said
    assert "fork" in said and "spawn" in said


def test_a_connection_given_up_in_its_transaction_lets_go_of_the_lock(sqlite_url: str) -> None:
    """Also while the traceback of what failed keeps one of its statements alive. The driver is the standard library's,
    which is used where its SQLite is new enough, and keeps the lock in more cases than the other."""
    path = sqlite_url.removeprefix("sqlite:///")
    connection, other = (sqlite3.connect(path, isolation_level=None, timeout=0) for _ in range(2))
    connection.execute("BEGIN IMMEDIATE")
    kept = connection.execute("SELECT 1 UNION SELECT 2")
    assert kept.fetchone()
    SqliteDialect(path, SystemClock()).discard(connection)
    other.execute("BEGIN IMMEDIATE")
    other.close()
    del kept


def test_a_lock_that_somebody_else_holds_is_not_waited_for(postgresql_url: str) -> None:
    """The backend of a connection that broke may hold a worker's liveness lock for a while."""
    store = open_store(Settings(database_url=postgresql_url), check=False)
    store.schema.upgrade()
    worker = WorkerInfo(new_id(), "kit", "host", 1)
    with store.unit("") as unit:
        unit.read("SELECT pg_advisory_lock(%s)", (key(worker.id),))
        store.fleet.join(worker)
        assert unit.read("SELECT locked FROM flowkit_workers") == [(0,)]
        unit.read("SELECT pg_advisory_unlock(%s)", (key(worker.id),))
        store.fleet.beat(worker.id, "ready")
        assert unit.read("SELECT locked FROM flowkit_workers") == [(1,)]
    store.close()


def test_a_large_purge_goes_on_at_once(sqlite_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)
    app.flow(orders, name="accept")(lambda order: None)
    with Harness(app, sqlite_url) as harness:
        with harness.store.transaction() as unit:
            old = [("shop.accept", "shop", str(number)) for number in range(2500)]
            columns = "flow, source, id, state, generation, attempts, suspect, changed"
            unit.write(f"INSERT INTO flowkit_inbox ({columns}) VALUES (?, ?, ?, 1, 0, 0, 0, 0)", old)
        for _ in range(3):
            harness.worker.maintenance.tick()
        with harness.store.unit("") as unit:
            assert unit.read("SELECT count(*) FROM flowkit_inbox") == [(0,)]


def test_an_idle_sqlite_is_looked_at_ever_more_seldom(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(Settings(database_url=sqlite_url))
    now, pauses = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("flowkit.store.sqlite.time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    store.wait(1)  # there is always news at first
    assert pauses == []
    store.wait(1)
    assert pauses[0] == 0.0005
    assert max(pauses) == 0.05
    assert len(pauses) < 80
    store.subscribers.add({"shop.accept": "orders"})
    pauses.clear()
    store.wait(1)
    assert pauses == []
    store.wait(1)
    assert pauses[0] == 0.0005
    store.close()
