"""PostgreSQL as administrators set it up: timeouts of the role, functions and rights that are missing, encodings."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.orm import Session

from flowkit import RetryPolicy, StoreUnavailable
from flowkit.errors import StoreConflict
from flowkit.services import connect, open_store
from flowkit.settings import Settings
from tests.support import ROOT
from tests.support.databases import working
from tests.support.roles import administer, prepare, role_of
from tests.support.shop import Effect, Order, effects, new_app, once, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.postgresql
CANCEL = """
    SELECT pg_cancel_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type IN ('Lock', 'Timeout') AND pid <> pg_backend_pid()"""


@contextmanager
def locked(url: str, table: str) -> Iterator[psycopg.Connection[Any]]:
    """Nobody else can use a table. Yields a connection beside the one that holds the lock."""
    with psycopg.connect(url) as holder, psycopg.connect(url, autocommit=True) as beside:
        holder.execute(sql.SQL("LOCK TABLE {}").format(sql.Identifier(table)))
        yield beside


class Cancelling:
    """Cancels, on a thread of its own, each statement that waits for a lock or sleeps, until the block ends."""

    def __init__(self, beside: psycopg.Connection[Any]) -> None:
        self._beside = beside
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._cancel)

    def _cancel(self) -> None:
        while not self._ended.wait(0.02):
            self._beside.execute(CANCEL)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


@pytest.mark.parametrize(
    ("setting", "what"), [("statement_timeout", StoreUnavailable), ("lock_timeout", StoreConflict)]
)
def test_row_c2_a_timeout_of_the_role_is_a_store_that_is_away_or_busy(
    postgresql_url: str, setting: str, what: type[Exception]
) -> None:
    prepare(postgresql_url)
    administer(postgresql_url, f"ALTER DATABASE {{name}} SET {setting} = '200ms'")
    with closing(open_store(Settings(database_url=postgresql_url))) as store:
        with locked(postgresql_url, "flowkit_directions"), pytest.raises(what, match=setting.replace("_", " ")):
            store.directions.read()
        assert store.directions.read() == {}


def test_row_c2_a_commit_that_is_cancelled_costs_no_message_an_attempt(postgresql_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    with running(app, postgresql_url) as harness:
        for number in range(3):
            harness.publish(orders, Order(name=str(number)))
        (lane, *_) = harness.worker.lanes
        told = pytest.raises(StoreUnavailable, match="user request")
        with locked(postgresql_url, "flowkit_counters") as beside, Cancelling(beside), told:
            lane.step()
        harness.until_quiet()
        once(harness, "0", "1", "2")
        assert harness.dead() == []


@pytest.mark.parametrize("many", [1, 3])
def test_row_c2_a_handlers_own_statement_that_is_cancelled_is_its_failure(postgresql_url: str, many: int) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        db.execute(text("INSERT INTO effects (name) VALUES (:name)"), {"name": order.name})

    with running(app, postgresql_url) as harness:
        for number in range(many):
            harness.publish(orders, Order(name=str(number)))
        with locked(postgresql_url, "effects") as beside, Cancelling(beside):
            harness.until_quiet()
        assert ["user request" in letter.error for letter in harness.dead()] == [True] * many


def test_row_c2_a_handlers_trigger_that_is_cancelled_at_the_commit_is_its_failure(postgresql_url: str) -> None:
    """Its transaction would otherwise be tried again for ever."""
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    with running(app, postgresql_url) as harness:
        administer(
            postgresql_url,
            "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(30) WHERE NEW.name = 'slow'; RETURN NEW; END $$",
            "CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION dawdle()",
        )
        for name in ("a", "slow", "b"):
            harness.publish(orders, Order(name=name))
        with psycopg.connect(postgresql_url, autocommit=True) as beside, Cancelling(beside):
            harness.until_quiet()
        once(harness, "a", "b")
        assert ["user request" in letter.error for letter in harness.dead()] == [True]


def test_row_c2_sessions_that_the_server_ends_while_they_are_idle_are_replaced(
    postgresql_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    prepare(postgresql_url)
    administer(postgresql_url, "ALTER DATABASE {name} SET idle_session_timeout = '100ms'")
    with ExitStack() as stack:
        store = stack.enter_context(closing(open_store(Settings(database_url=postgresql_url))))
        beside = stack.enter_context(psycopg.connect(postgresql_url, autocommit=True))
        stack.enter_context(caplog.at_level(logging.WARNING))
        beside.execute("SET idle_session_timeout = 0")
        for _ in range(3):
            assert store.directions.read() == {}
            wait_until(lambda: others(beside) == 0, 10)
    assert not caplog.records


def others(connection: psycopg.Connection[Any]) -> int:
    """How many other sessions of the database there are."""
    ((found,),) = connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ).fetchall()
    return int(found)


class Instance:
    """`flowkit run` of the shop of the other processes' tests, with what it says."""

    def __init__(self, url: str, folder: Path) -> None:
        self.log = folder / "log"
        self._file = self.log.open("wb")
        environment = {**os.environ, "FLOWKIT_DATABASE_URL": url, "FLOWKIT_BROKER_URL": "", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flowkit", "run", "tests.support.web_app:app"],
            env=environment, cwd=ROOT, stdout=self._file, stderr=self._file, start_new_session=True,
        )  # fmt: skip

    def said(self, what: str) -> int:
        return self.log.read_text().count(what)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self._file.close()


@pytest.mark.processes
def test_row_c2_an_instance_outlives_a_table_that_is_locked_or_missing(postgresql_url: str, tmp_path: Path) -> None:
    prepare(postgresql_url)
    administer(postgresql_url, "ALTER DATABASE {name} SET statement_timeout = '200ms'")
    with ExitStack() as stack:
        store = stack.enter_context(closing(open_store(Settings(database_url=postgresql_url))))
        instance = stack.enter_context(closing(Instance(postgresql_url, tmp_path)))

        def outlives() -> None:
            """In the time in which the supervisor looks twice at least."""
            end = time.monotonic() + 2.5
            wait_until(lambda: time.monotonic() > end or instance.process.poll() is not None)
            assert instance.process.poll() is None, instance.log.read_text()

        wait_until(lambda: store.fleet.ready("front") == 1)
        pids = {one.pid for one in store.ledger.workers()}
        with locked(postgresql_url, "flowkit_directions"):
            wait_until(lambda: instance.said("the store cannot be reached") > 0)
            outlives()
        wait_until(lambda: instance.said("the store is back") > 0)
        administer(postgresql_url, "ALTER TABLE flowkit_directions RENAME TO hidden")
        outlives()
        administer(postgresql_url, "ALTER TABLE hidden RENAME TO flowkit_directions")
        wait_until(lambda: store.fleet.ready("front") == 1)
        assert {one.pid for one in store.ledger.workers()} == pids


IDENTITY = ["pg_control_system()", "pg_walfile_name(pg_lsn)", "pg_current_wal_insert_lsn()"]
OTHERS = ["pg_logical_emit_message(boolean, text, text)", "pg_try_advisory_lock(bigint)", "pg_notify(text, text)"]


@pytest.mark.parametrize("function", [*IDENTITY, *OTHERS])
def test_row_c1_a_function_that_the_server_refuses_costs_what_it_was_for_and_no_more(
    postgresql_url: str, caplog: pytest.LogCaptureFixture, function: str
) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    with ExitStack() as stack:
        url = stack.enter_context(role_of(postgresql_url))
        administer(postgresql_url, f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")
        stack.enter_context(caplog.at_level(logging.WARNING))
        services = stack.enter_context(closing(connect(Settings(database_url=url))))
        with working(app, services) as worker:
            for number in range(3):
                app.publish(orders, Order(name=str(number)), id=str(number))
                app.publish(orders, Order(name=str(number)), id=str(number))
            wait_until(lambda: services.store.ledger.unfinished(["shop.accept"]) == 0)
            assert worker.state == "ready"
        with services.store.unit("") as unit:
            unit.witness()
            unit.commit()
        store: Any = services.store
        with Session(store.dialect.engine) as session:
            assert effects(session) == {"0": 1, "1": 1, "2": 1}
    told = [record.getMessage() for record in caplog.records]
    name = function.partition("(")[0]
    assert len(told) == (name != "pg_logical_emit_message"), told
    if function in IDENTITY:
        assert name in told[0] and "old primary" in told[0] and "GRANT EXECUTE" in told[0]
