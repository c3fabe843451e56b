"""What a failed message wrote on the objects of its unit of work is gone, on both stores."""

from contextlib import closing
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from flowkit import App, Channel, Outbox, RetryPolicy, UnitOfWork
from flowkit.services import open_store
from flowkit.settings import Settings
from tests.support.access import ISOLATIONS, NAMES, OTHERS, Deed, publish, swallow, there
from tests.support.shop import FAST, Effect, Order, Unique, once, running

pytestmark = pytest.mark.migrated


def swallow_a_statement(db: Session) -> None:
    try:
        db.execute(text("INSERT INTO uniques (name) VALUES ('there')"))
    except IntegrityError:
        """Swallowed: SQLite goes on as if nothing had been."""


def swallow_in_a_savepoint(db: Session) -> None:
    try:
        with db.begin_nested():
            swallow_a_statement(db)
    except DBAPIError:
        """PostgreSQL refuses to keep the savepoint."""
    swallow_a_statement(db)


def note_and_raise(db: Session) -> None:
    db.add(Unique(name="there"))
    try:
        db.flush()
    except IntegrityError:
        db.add(Effect(name="leak"))
        raise


@pytest.mark.postgresql
@pytest.mark.parametrize("wanted", [Connection, Session])
def test_a_handler_writes_on_the_connection_that_replaces_a_dead_one(postgresql_url: str, wanted: type) -> None:
    with closing(open_store(Settings(database_url=postgresql_url), check=False)) as opened:
        store: Any = opened
        with store.unit("shop.accept") as unit, unit.access() as access, psycopg.connect(postgresql_url) as beside:
            given = access.give(wanted)
            ((pid,),) = unit.read("SELECT pg_backend_pid()")
            beside.execute("SELECT pg_terminate_backend(%s, 60000)", (pid,))
            assert given.execute(text("SELECT pg_backend_pid()")).scalar() != pid


# ---------------------------------------------------------------- what a failed message wrote is gone


@ISOLATIONS
@pytest.mark.parametrize("deed", [swallow, swallow_a_statement, swallow_in_a_savepoint, note_and_raise])
def test_what_a_dead_message_wrote_is_gone(
    app: App, orders: Channel[Order], database_url: str, isolate: Any, deed: Deed
) -> None:
    @app.flow(orders, retry=FAST, isolate=isolate)
    def accept(order: Order, db: Session) -> None:
        if order.deed:
            deed(db)
            db.add(Effect(name="leak"))
        db.add(Effect(name=order.name))

    with running(app, database_url) as harness:
        there(harness, "there")
        publish(harness, orders)
        once(harness, *OTHERS)
        (letter,) = harness.dead()
        assert letter.attempts == 3


@pytest.mark.parametrize("deed", [swallow, swallow_a_statement])
def test_what_a_dead_unit_of_work_wrote_is_gone(
    app: App, orders: Channel[Order], database_url: str, deed: Deed
) -> None:
    @app.flow(orders, retry=RetryPolicy(attempts=1))
    async def accept(order: Order, work: UnitOfWork) -> None:
        def write(db: Session, outbox: Outbox) -> None:
            db.add(Effect(name=order.name))
            if order.deed:
                deed(db)
                db.add(Effect(name="leak"))

        await work.run(write)

    with running(app, database_url) as harness:
        there(harness, "there")
        publish(harness, orders)
        once(harness, *OTHERS)
        assert len(harness.dead()) == 1


@ISOLATIONS
def test_a_handler_that_guards_its_statement_goes_on(
    app: App, orders: Channel[Order], database_url: str, isolate: Any
) -> None:
    @app.flow(orders, retry=FAST, isolate=isolate)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            for deed in (swallow_a_statement, lambda db: db.add(Unique(name="there"))):
                try:
                    with db.begin_nested():
                        deed(db)
                        db.flush()
                        raise ValueError("not kept")
                except (IntegrityError, ValueError):
                    """Undone, and no failure of the message."""
            db.begin_nested()  # left open: what it holds is kept
            db.add(Unique(name="kept"))

    with running(app, database_url) as harness:
        there(harness, "there")
        publish(harness, orders)
        once(harness, *NAMES)
        with harness.session() as session:
            assert session.get(Unique, "kept")


@ISOLATIONS
def test_row_b1_what_a_dead_message_wrote_by_the_drivers_cursor_is_gone(
    app: App, orders: Channel[Order], database_url: str, isolate: Any
) -> None:
    @app.flow(orders, retry=FAST, isolate=isolate)
    def accept(order: Order, db: Connection) -> None:
        driver: Any = db.connection
        driver.cursor().execute(f"INSERT INTO effects (name) VALUES ('{order.name}')")
        if order.deed:
            raise ValueError("no")

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *OTHERS)
        assert len(harness.dead()) == 1


def test_row_b1_what_a_dead_message_copied_is_gone(app: App, orders: Channel[Order], postgresql_url: str) -> None:
    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        driver: Any = db.connection().connection.driver_connection
        with driver.cursor().copy("COPY effects (name) FROM STDIN") as copy:
            copy.write_row([order.name])
        if order.deed:
            raise ValueError("no")

    with running(app, postgresql_url) as harness:
        publish(harness, orders)
        once(harness, *OTHERS)
        assert len(harness.dead()) == 1
