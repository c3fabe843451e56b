"""Threads and results that a handler leaves behind meet no other message of its batch."""

import threading
from typing import Any

import pytest
from pydantic import BaseModel, field_serializer
from sqlalchemy import Column, Integer, MetaData, Table, Text, insert, text
from sqlalchemy.orm import Session

from flowkit import App, Channel, Message, Outbox
from flowkit.errors import FlowKitError
from tests.support.isolation import CULPRIT, INSERT, NAMES, ONCE, OTHERS, publish
from tests.support.shop import FAST, Order, Unique, once, running

pytestmark = pytest.mark.migrated


@pytest.mark.parametrize("held", [False, True])
def test_a_thread_with_the_connection_of_a_result_writes_in_no_other_message(
    app: App, orders: Channel[Order], database_url: str, held: bool
) -> None:
    kept: list[Any] = []
    refused: list[str] = []

    def late() -> None:
        try:
            kept[0].execute(INSERT, {"name": "late"})
        except Exception as error:
            refused.append(str(error))

    @app.flow(orders, retry=ONCE)
    def accept(order: Order, db: Session) -> None:
        result: Any = db.execute(INSERT, {"name": order.name})
        kept.append(result.connection)
        if held:
            db.connection()
        if len(kept) > 1:
            thread = threading.Thread(target=late)
            thread.start()
            thread.join()

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *NAMES)
        assert len(refused) == len(NAMES) - 1


@pytest.mark.parametrize("isolate", ["batch", "single"])
@pytest.mark.parametrize("fails", [True, False])
def test_a_thread_amid_a_statement_writes_in_no_other_message(
    app: App, orders: Channel[Order], database_url: str, isolate: Any, fails: bool
) -> None:
    begun, go = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []
    refused: list[str] = []

    def wait() -> str:
        begun.set()
        go.wait(20)
        return "late"

    name = Column("name", Text, default=wait)
    slow = Table("effects", MetaData(), Column("row", Integer, primary_key=True), name)

    def late(db: Session) -> None:
        try:
            db.execute(insert(slow))
        except Exception as error:
            refused.append(str(error))

    @app.flow(orders, retry=ONCE, isolate=isolate, concurrency=1)
    def accept(order: Order, db: Session) -> None:
        if order.name == CULPRIT and not threads:
            threads.append(threading.Thread(target=late, args=(db,)))
            threads[0].start()
            assert begun.wait(20)
        if order.name == CULPRIT and fails:
            raise ValueError("dead")
        if order.name == CULPRIT:
            return
        db.execute(INSERT, {"name": order.name})
        if threads:
            go.set()
            threads[0].join(20)

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *OTHERS)
        assert ["after its handler had returned" in one for one in refused] == [True]


def test_the_drivers_connection_is_not_closed_by_the_pools_means(
    app: App, orders: Channel[Order], database_url: str
) -> None:
    @app.flow(orders, retry=ONCE)
    def accept(order: Order, db: Session) -> None:
        db.execute(INSERT, {"name": order.name})
        if order.name == CULPRIT:
            db.connection().connection.close()

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *OTHERS)
        (letter,) = harness.dead()
        assert "the handler called connection.close()" in letter.error


def test_what_is_done_to_the_drivers_connection_meets_no_other_message(
    app: App, orders: Channel[Order], postgresql_url: str
) -> None:
    seen: list[object] = []

    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        if order.name == CULPRIT:
            driver: Any = db.connection().connection.driver_connection
            driver.execute("SET LOCAL app.tenant = 'acme'")
        else:
            seen.append(db.scalar(text("SELECT current_setting('app.tenant', true)")))
        db.execute(INSERT, {"name": order.name})

    with running(app, postgresql_url) as harness:
        publish(harness, orders)
        once(harness, *NAMES)
        assert set(seen) <= {None, ""}


BECOME = """
    CREATE FUNCTION become(path text) RETURNS text LANGUAGE plpgsql AS
    $$ BEGIN RETURN set_config('search_path', path, true); END $$"""


@pytest.mark.parametrize(
    ("deed", "dead"),
    [
        ("SET LOCAL search_path = pg_catalog", 0),
        ("SET ROLE pg_monitor", 0),
        ("SET TRANSACTION READ ONLY", 1),
        ("SELECT become('pg_catalog')", 1),
    ],
)
def test_what_a_handler_sets_unseen_holds_up_nobody(
    app: App, orders: Channel[Order], postgresql_url: str, deed: str, dead: int
) -> None:
    @app.flow(orders, retry=ONCE, isolate="single")
    def accept(order: Order, db: Session) -> None:
        db.execute(INSERT, {"name": order.name})
        if order.name == CULPRIT and "become" in deed:
            db.execute(text(deed))
        elif order.name == CULPRIT:
            driver: Any = db.connection().connection.driver_connection
            driver.execute(deed)

    with running(app, postgresql_url) as harness:
        with harness.session() as session:
            session.execute(text(BECOME))
        publish(harness, orders)
        once(harness, *(OTHERS if dead else NAMES))
        assert ["settings=True" in letter.error for letter in harness.dead()] == [True] * dead


# ---------------------------------------------------------------- messages


def test_headers_that_a_handler_changes_stay_as_they_came(app: App, orders: Channel[Order], database_url: str) -> None:
    seen: list[dict[str, str]] = []

    @app.flow(orders, retry=FAST)
    def accept(order: Order, message: Message) -> None:
        seen.append(dict(message.headers))
        message.headers["tenant"] = "evil"  # type: ignore[index]
        raise ValueError("dead")

    with running(app, database_url) as harness:
        harness.publish(orders, Order(name="a"), headers={"tenant": "acme"})
        harness.until_quiet()
        for _ in range(4):
            harness.advance("1s")
        (letter,) = harness.dead()
        assert letter.message.headers == {"tenant": "acme"}
        assert seen == [{"tenant": "acme"}] * 3


def test_a_thread_that_is_late_with_its_message_is_told(app: App, orders: Channel[Order], database_url: str) -> None:
    begun, go = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []
    refused: list[str] = []

    class Slow(BaseModel):
        name: str

        @field_serializer("name")
        def write(self, name: str) -> str:
            begun.set()
            go.wait(20)
            return name

    done = app.channel("done", Slow, optional=True)

    def late(outbox: Outbox) -> None:
        try:
            outbox.send(done, Slow(name="late"))
        except FlowKitError as error:
            refused.append(str(error))

    @app.flow(orders, to=done, retry=ONCE, concurrency=1)
    def accept(order: Order, outbox: Outbox) -> None:
        threads.append(threading.Thread(target=late, args=(outbox,)))
        threads[0].start()
        assert begun.wait(20)

    with running(app, database_url) as harness:
        harness.publish(orders, Order(name="a"))
        harness.until_quiet()
        go.set()
        threads[0].join(20)
        assert ["outbox.send() was called after the handler" in one for one in refused] == [True]


# ---------------------------------------------------------------- results


@pytest.mark.parametrize("isolate", ["batch", "single"])
@pytest.mark.parametrize("kept_by", ["the app", "its error"])
@pytest.mark.parametrize(
    "query", ["SELECT name FROM uniques", "INSERT INTO uniques VALUES ('x'), ('y') RETURNING name"]
)
def test_a_result_that_is_kept_holds_up_nobody(
    app: App, orders: Channel[Order], sqlite_url: str, isolate: Any, kept_by: str, query: str
) -> None:
    kept: list[object] = []

    @app.flow(orders, retry=ONCE, isolate=isolate, concurrency=1)
    def accept(order: Order, db: Session) -> None:
        if order.name != CULPRIT:
            db.execute(INSERT, {"name": order.name})
            return
        result = db.execute(text(query))
        assert result.fetchone()
        if kept_by == "the app":
            kept.append(result)
        else:
            raise ValueError("dead")

    with running(app, sqlite_url) as harness:
        with harness.session() as session:
            session.add_all([Unique(name="a"), Unique(name="b")])
            session.commit()
        publish(harness, orders)
        with harness.session() as first, harness.session() as second:  # the pool's connections, and so another's commit
            first.connection()
            second.execute(INSERT, {"name": "n"})
        harness.publish(orders, Order(name="m"))
        harness.until_quiet()
        once(harness, *OTHERS, "n", "m")
        assert len(harness.dead()) == (kept_by == "its error")
