"""Messages of one batch: what they see of each other, and whom a failure of the database is charged to."""

import threading
from typing import Any

import pytest
import sqlalchemy
from packaging.version import Version
from sqlalchemy import Connection, func, select, text
from sqlalchemy.orm import Session

from flowkit import App, Channel, RetryPolicy
from flowkit.engine.triage import DEATHS
from flowkit.engine.worker import Worker
from flowkit.errors import FlowKitError
from flowkit.services import open_store
from flowkit.settings import Settings
from flowkit.store.residue import TOKEN
from tests.support.access import CULPRIT, ISOLATIONS, NAMES, OTHERS, publish, there
from tests.support.shop import FAST, Effect, Order, once, running

pytestmark = pytest.mark.migrated


FLUSHES_BEFORE_TEXT = Version(sqlalchemy.__version__) >= Version("2.1")
"""Before, SQLAlchemy sent what a session holds only before statements that name classes."""


@ISOLATIONS
def test_a_message_sees_what_those_before_it_in_its_batch_added(
    app: App, orders: Channel[Order], database_url: str, isolate: Any
) -> None:
    seen: list[int] = []

    @app.flow(orders, isolate=isolate, concurrency=1)
    def accept(order: Order, db: Session, connection: Connection) -> None:
        way = (len(seen) % 3, text("SELECT count(*) FROM effects"))
        count = (
            connection.scalar(way[1])
            if way[0] == 0
            else db.scalar(way[1])
            if way[0] == 1
            else len(db.query(Effect).all())
        )
        seen.append(int(count))
        db.add(Effect(name=order.name))
        own = way[1] if FLUSHES_BEFORE_TEXT else select(func.count(Effect.name))
        assert db.scalar(own) == count + 1, "its own are sent first"

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *NAMES)
        assert seen == list(range(10))


def test_a_statement_by_which_sqlite_rolls_back_costs_its_message_only(
    app: App, orders: Channel[Order], sqlite_url: str
) -> None:
    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            db.execute(text("INSERT OR ROLLBACK INTO uniques (name) VALUES ('there')"))

    with running(app, sqlite_url) as harness:
        there(harness, "there")
        publish(harness, orders)
        once(harness, *OTHERS)
        (letter,) = harness.dead()
        assert "IntegrityError" in letter.error


@ISOLATIONS
def test_row_50_flowkits_own_savepoint_is_not_a_handlers(
    app: App, orders: Channel[Order], database_url: str, isolate: Any
) -> None:
    @app.flow(orders, retry=FAST, isolate=isolate)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            db.execute(text(f"ROLLBACK TO {TOKEN}"))

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *OTHERS)
        (letter,) = harness.dead()
        assert "a savepoint of FlowKit's own" in letter.error


def test_a_restart_of_the_database_charges_nobody(
    app: App, orders: Channel[Order], postgresql: Any, postgresql_url: str
) -> None:
    runs: list[str] = []

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        runs.append(order.name)
        if len(runs) <= DEATHS:
            db.flush()
            postgresql.restart()

    with running(app, postgresql_url) as harness:
        harness.publish(orders, Order(name="a"))
        for _ in range(DEATHS + 1):
            try:
                harness.until_quiet()
            except FlowKitError:
                """The database is away, as it is for a worker."""
        once(harness, "a")


def test_an_interrupt_in_a_handler_is_a_failure_of_its_message(
    app: App, orders: Channel[Order], database_url: str
) -> None:
    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            raise KeyboardInterrupt

    with running(app, database_url) as harness:
        worker = Worker(app, harness.services)
        for name in NAMES:
            harness.publish(orders, Order(name=name, deed="x" if name == CULPRIT else ""))
        thread = threading.Thread(target=worker.run)
        thread.start()
        wait = threading.Event()
        for _ in range(600):
            if harness.balances()["shop.accept"].pending == 0:
                break
            wait.wait(0.05)
        worker.stop()
        thread.join(30)
        assert not worker.crippled
        once(harness, *OTHERS)
        (letter,) = harness.dead()
        assert "KeyboardInterrupt" in letter.error


# ---------------------------------------------------------------- what is told, and what cannot be recorded


def test_a_failure_that_the_next_run_does_not_have_is_told(
    app: App, orders: Channel[Order], database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    failed: set[str] = set()

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed and order.name not in failed:
            failed.add(order.name)
            raise ValueError("only once")

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *NAMES)
        (told,) = (record for record in caplog.records if "succeeded as its batch ran again" in record.message)
        assert "ValueError: only once" in told.getMessage()
        assert told.__dict__["message_id"] in told.getMessage()


def test_row_h1_a_failure_that_cannot_be_recorded_waits_and_is_told(
    app: App, orders: Channel[Order], database_url: str
) -> None:
    runs: list[str] = []

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            runs.append(order.name)
            raise ValueError("no")

    with running(app, database_url) as harness:
        refuse = (
            ["CREATE TRIGGER refuse BEFORE INSERT ON flowkit_dead BEGIN SELECT RAISE(ABORT, 'not here'); END"]
            if database_url.startswith("sqlite")
            else [
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not here'; END $$",
                "CREATE TRIGGER refuse BEFORE INSERT ON flowkit_dead EXECUTE FUNCTION refuse()",
            ]
        )
        with harness.session() as session:
            for statement in refuse:
                session.execute(text(statement))
        for name in NAMES:
            harness.publish(orders, Order(name=name, deed="x" if name == CULPRIT else ""))
        for _ in range(3):
            with pytest.raises(FlowKitError, match=r"refuses to record .* flow shop\.accept: .*not here"):
                harness.until_quiet()
        once(harness, *OTHERS)
        assert len(runs) < 20
        with harness.session() as session:
            on = "" if database_url.startswith("sqlite") else " ON flowkit_dead"
            session.execute(text(f"DROP TRIGGER refuse{on}"))
        harness.until_quiet()
        assert len(harness.dead()) == 1


# ---------------------------------------------------------------- the outbox of another program's session


def test_row_b4_an_outbox_that_is_kept_across_commits_sends_with_each(
    app: App, orders: Channel[Order], database_url: str
) -> None:
    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    with running(app, database_url) as harness:
        engine = open_store(Settings(database_url=database_url)).dialect.engine
        with Session(engine) as session:
            outbox = app.outbox(session)
            for name in "abcd":
                outbox.send(orders, Order(name=name))
                session.commit()
            outbox.send(orders, Order(name="undone"))
            session.rollback()
        engine.dispose()
        harness.until_quiet()
        once(harness, *"abcd")
