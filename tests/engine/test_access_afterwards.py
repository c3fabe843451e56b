"""The objects of a unit of work raise when they are used after their handler, on both stores."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.orm import Session

from flowkit import App, Channel, Objects, Outbox
from flowkit.errors import FlowKitError
from tests.support.access import CULPRIT, ISOLATIONS, NAMES, OTHERS, publish, there
from tests.support.shop import FAST, Effect, Order, Unique, once, running

pytestmark = pytest.mark.migrated


# ---------------------------------------------------------------- what is used after the handler


@pytest.mark.parametrize("wanted", [Session, Connection, Objects])
@ISOLATIONS
def test_what_is_used_after_its_handler_raises(
    app: App, orders: Channel[Order], database_url: str, isolate: Any, wanted: type
) -> None:
    kept: list[Any] = []
    raised: list[str] = []

    def accept(order: Order, db: Any) -> None:
        def write() -> None:
            try:
                if wanted is Objects:
                    db.put("late", 1)
                else:
                    db.execute(text("INSERT INTO effects (name) VALUES ('late')"))
            except FlowKitError as error:
                raised.append(str(error))

        for late in kept:
            thread = threading.Thread(target=late)
            thread.start()
            thread.join()
            late()
        kept[:] = [write]
        text_of = text("SELECT 1")
        _ = db.get("late") if wanted is Objects else db.execute(text_of)

    accept.__annotations__["db"] = wanted
    app.flow(orders, retry=FAST, isolate=isolate)(accept)
    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness)
        assert not harness.dead()
        assert len(raised) == 2 * (len(NAMES) - 1)
        assert "flow shop.accept" in raised[0]
        assert "after its handler had returned" in raised[0]


def test_the_connection_of_a_result_leads_to_no_other_message(
    app: App, orders: Channel[Order], database_url: str
) -> None:
    kept: list[Connection] = []
    refused: list[str] = []

    def write(connection: Connection) -> None:
        try:
            connection.execute(text("INSERT INTO effects (name) VALUES ('late')"))
        except FlowKitError as error:
            refused.append(str(error))

    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        result: Any = db.execute(text("INSERT INTO effects (name) VALUES (:name)"), {"name": order.name})
        kept.append(result.connection)
        thread = threading.Thread(target=write, args=kept[:1])
        thread.start()
        thread.join()

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *NAMES)
        assert not harness.dead()
        assert len(refused) == len(NAMES)
        assert "take it from Session.connection()" in refused[0]


@pytest.mark.parametrize("wake", [False, True], ids=["asleep", "awake"])
@pytest.mark.parametrize("name", ["engine_connect", "begin"])
def test_a_listener_to_the_engine_sets_something_for_the_transaction(
    app: App, orders: Channel[Order], postgresql_url: str, name: str, wake: bool
) -> None:
    """As apps do whose rows belong to tenants."""

    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        if wake:
            db.flush()
        tenant = db.execute(text("SELECT current_setting('app.tenant', true)")).scalar()
        db.execute(text("INSERT INTO effects (name) VALUES (:name)"), {"name": f"{order.name} of {tenant}"})

    def listen(connection: Connection) -> None:
        connection.execute(text("SET LOCAL app.tenant = 'acme'"))

    with running(app, postgresql_url) as harness:
        event.listen(Engine, name, listen)
        try:
            publish(harness, orders)
        finally:
            event.remove(Engine, name, listen)
        once(harness, *(f"{one} of acme" for one in NAMES))
        assert not harness.dead()


def test_a_listener_executes_on_the_connection_of_a_statement(
    app: App, orders: Channel[Order], database_url: str
) -> None:
    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        db.execute(text("INSERT INTO effects (name) VALUES (:name)"), {"name": order.name})

    def listen(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("INSERT INTO effects"):
            connection.execute(text("SELECT 1"))

    with running(app, database_url) as harness:
        event.listen(Engine, "before_cursor_execute", listen)
        try:
            publish(harness, orders)
            once(harness, *NAMES)
            assert not harness.dead()
        finally:
            event.remove(Engine, "before_cursor_execute", listen)


def test_a_connection_that_a_handler_holds_is_its_own(app: App, orders: Channel[Order], database_url: str) -> None:
    kept: list[Connection] = []
    shared: list[str] = []

    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        db.execute(text("SELECT 1"))
        if db.connection() in kept:
            shared.append(order.name)
        kept.append(db.connection())
        db.execute(text("INSERT INTO effects (name) VALUES (:name)"), {"name": order.name})

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *NAMES)
        assert not shared
        assert len(kept) == len(NAMES)


def test_an_object_that_changes_after_its_handler_changes_nothing(
    app: App, orders: Channel[Order], database_url: str
) -> None:
    kept: list[Unique] = []

    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        for one in kept:
            one.name = "late"
        kept[:] = [db.get_one(Unique, order.name)]
        db.add(Effect(name=order.name))

    with running(app, database_url) as harness:
        there(harness, *NAMES)
        publish(harness, orders)
        once(harness, *NAMES)
        with harness.session() as session:
            assert not session.get(Unique, "late")


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_an_outbox_that_is_used_after_its_handler_raises(
    app: App, orders: Channel[Order], database_url: str, kind: str
) -> None:
    done = app.channel("done", Order, optional=True)
    kept: list[Outbox] = []
    raised: list[str] = []

    def late(outbox: Outbox) -> None:
        for one in kept:
            with pytest.raises(FlowKitError) as error:
                one.send(done, Order(name="late"))
            raised.append(str(error.value))
        kept[:] = [outbox]

    if kind == "def":

        @app.flow(orders, to=done)
        def accept(order: Order, outbox: Outbox) -> None:
            late(outbox)
    else:

        @app.flow(orders, to=done, name="accept", concurrency=1)
        async def accept_async(order: Order, outbox: Outbox) -> None:
            late(outbox)

    with running(app, database_url) as harness:
        publish(harness, orders)
        assert not harness.sent(done)
        assert len(raised) == len(NAMES) - 1
        assert "outbox.send() was called after the handler of message" in raised[0]


def test_what_a_message_sets_on_its_session_is_its_own(app: App, orders: Channel[Order], database_url: str) -> None:
    seen: list[Any] = []

    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        seen.append((dict(db.info), db.autoflush, len(db.new), len(db.identity_map)))
        db.info["tenant"] = order.name
        db.autoflush = False
        db.add(Effect(name=order.name))

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *NAMES)
        assert seen == [({}, True, 0, 0)] * len(NAMES)


# ---------------------------------------------------------------- hooks


def test_row_b7_hooks_of_the_session_run_for_each_message(app: App, orders: Channel[Order], database_url: str) -> None:
    told: list[tuple[str, Any]] = []

    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        db.info["order"] = order.name
        db.add(Effect(name=order.name))
        if order.deed:
            raise ValueError("no")

    def audit(session: Session) -> None:
        if "order" in session.info:
            session.add(Unique(name=session.info["order"]))

    def tell(what: str) -> Callable[[Session], None]:
        return lambda session: told.append((what, session.info["order"])) if "order" in session.info else None

    hooks = [("before_commit", audit), ("after_commit", tell("commit")), ("after_rollback", tell("rollback"))]
    for name, hook in hooks:
        event.listen(Session, name, hook)
    try:
        with running(app, database_url) as harness:
            publish(harness, orders)
            once(harness, *OTHERS)
            with harness.session() as session:
                assert sorted(one.name for one in session.query(Unique)) == OTHERS
    finally:
        for name, hook in hooks:
            event.remove(Session, name, hook)
    assert sorted(one for one in told if one[0] == "commit") == [("commit", name) for name in OTHERS]
    assert ("rollback", CULPRIT) in told
