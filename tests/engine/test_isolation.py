"""The messages of one batch share a transaction and do not meet, whatever their handlers and the app's listeners do."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, Text, event, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Mapper, Session, make_transient_to_detached, mapped_column

from flowkit import App, Channel, RetryPolicy
from flowkit.testing import Harness
from tests.support.isolation import CULPRIT, INSERT, NAMES, ONCE, OTHERS, publish
from tests.support.shop import Effect, Order, Unique, once, running

pytestmark = pytest.mark.migrated
ISOLATIONS = pytest.mark.parametrize("isolate", ["batch", "savepoint", "single"])
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class Own(DeclarativeBase):
    """Tables of these tests."""


class Place(Own):
    __tablename__ = "places"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text, default=tenant.get)
    amount: Mapped[int] = mapped_column(default=0)


@contextmanager
def running_with_places(app: App, url: str) -> Iterator[Harness]:
    with running(app, url) as harness:
        with harness.session() as session:
            Own.metadata.create_all(session.connection())
        yield harness


@contextmanager
def listening(target: Any, name: str, listener: Any) -> Iterator[None]:
    event.listen(target, name, listener)
    try:
        yield
    finally:
        event.remove(target, name, listener)


def places(harness: Harness) -> dict[str, tuple[str, int]]:
    with harness.session() as session:
        return {one.name: (one.tenant, one.amount) for one in session.scalars(select(Place))}


# ---------------------------------------------------------------- objects that handlers keep


@ISOLATIONS
@pytest.mark.parametrize("known", [False, True])
def test_objects_that_a_handler_keeps_are_written_when_it_runs_again(
    app: App, orders: Channel[Order], database_url: str, isolate: Any, known: bool
) -> None:
    kept: dict[str, Place] = {}
    failed: list[str] = []

    @app.flow(orders, retry=RetryPolicy(attempts=2, first="1s"), isolate=isolate)
    def accept(order: Order, db: Session) -> None:
        if order.name not in kept:
            kept[order.name] = db.get_one(Place, order.name) if known else Place(name=order.name)
        db.add(kept[order.name])
        kept[order.name].amount = 7
        db.flush()
        if order.name == CULPRIT and not failed:
            failed.append(order.name)
            raise ValueError("the first time")

    with running_with_places(app, database_url) as harness:
        if known:
            with harness.session() as session:
                session.add_all(Place(name=name, amount=1) for name in NAMES)
                session.commit()
        publish(harness, orders)
        assert not harness.dead() and failed
        assert places(harness) == {name: ("nobody", 7) for name in NAMES}


# ---------------------------------------------------------------- savepoints


@ISOLATIONS
def test_nobody_goes_back_to_the_savepoint_of_another_message(
    app: App, orders: Channel[Order], database_url: str, isolate: Any
) -> None:
    @app.flow(orders, retry=ONCE, isolate=isolate)
    def accept(order: Order, db: Session) -> None:
        if order.name == "2":
            db.execute(text("SAVEPOINT mine"))
        if order.name == CULPRIT:
            db.execute(text("ROLLBACK TO SAVEPOINT mine"))
        db.execute(INSERT, {"name": order.name})

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *OTHERS)
        assert len(harness.dead()) == 1


@ISOLATIONS
@pytest.mark.parametrize("statements", [["SAVEPOINT"], ["RELEASE SAVEPOINT", "SAVEPOINT"]], ids=["again", "released"])
def test_a_savepoint_of_sqlalchemys_name_keeps_no_dead_messages_rows(
    app: App, orders: Channel[Order], database_url: str, isolate: Any, statements: list[str]
) -> None:
    @app.flow(orders, retry=ONCE, isolate=isolate)
    def accept(order: Order, db: Session) -> None:
        db.execute(INSERT, {"name": order.name})
        if order.name == CULPRIT:
            for statement in statements:
                db.execute(text(f"{statement} sa_savepoint_1"))
            raise ValueError("dead")

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *OTHERS)
        assert len(harness.dead()) == 1


@ISOLATIONS
def test_a_session_of_the_handlers_own_that_commits_keeps_no_rows(
    app: App, orders: Channel[Order], database_url: str, isolate: Any
) -> None:
    @app.flow(orders, retry=ONCE, isolate=isolate)
    def accept(order: Order, db: Session) -> None:
        db.execute(INSERT, {"name": order.name})
        if order.name == CULPRIT:
            own = Session(db.connection(), join_transaction_mode="control_fully")
            own.execute(text("SELECT 1"))
            own.commit()

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *OTHERS)
        assert len(harness.dead()) == 1


@ISOLATIONS
@pytest.mark.parametrize("refused", ["ROLLBACK", "RELEASE"])
def test_a_listener_that_refuses_savepoints_keeps_no_dead_messages_rows(
    app: App, orders: Channel[Order], database_url: str, isolate: Any, refused: str
) -> None:
    @app.flow(orders, retry=ONCE, isolate=isolate)
    def accept(order: Order, db: Session) -> None:
        db.execute(INSERT, {"name": order.name})
        if order.name == CULPRIT:
            raise ValueError("dead")

    def guard(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.split(maxsplit=1)[0] == refused:
            raise PermissionError("only what writes")

    with running(app, database_url) as harness, listening(Engine, "before_cursor_execute", guard):
        publish(harness, orders)
    with running(app, database_url) as harness:
        dead = {Order.model_validate_json(letter.message.body).name for letter in harness.dead()}
        assert CULPRIT in dead
        once(harness, *(name for name in NAMES if name not in dead))


# ---------------------------------------------------------------- objects that are only added


@pytest.mark.parametrize("hook", ["default", "before_insert"])
def test_rows_are_made_in_the_context_of_their_handler(
    app: App, orders: Channel[Order], database_url: str, hook: str
) -> None:
    @app.flow(orders, retry=ONCE)
    def accept(order: Order, db: Session) -> None:
        tenant.set(f"t{order.name}")
        db.add(Place(name=order.name))

    def fill(mapper: Mapper[Any], connection: Connection, place: Place) -> None:
        place.tenant = tenant.get()

    with running_with_places(app, database_url) as harness:
        if hook == "default":
            publish(harness, orders)
        else:
            with listening(Place, "before_insert", fill):
                publish(harness, orders)
        assert places(harness) == {name: (f"t{name}", 0) for name in NAMES}


def test_an_added_object_that_changes_later_changes_nothing(
    app: App, orders: Channel[Order], database_url: str
) -> None:
    kept: list[Effect] = []

    @app.flow(orders, retry=ONCE)
    def accept(order: Order, db: Session) -> None:
        for one in kept:
            one.name = "late"
        row = Effect(name=order.name)
        db.add(row)
        kept[:] = [row]

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *NAMES)


def test_a_changed_object_that_is_only_added_is_written(app: App, orders: Channel[Order], database_url: str) -> None:
    @app.flow(orders, retry=ONCE)
    def accept(order: Order, db: Session) -> None:
        place = Place(name=order.name, tenant="t", amount=1)
        make_transient_to_detached(place)
        place.amount = 7
        db.add(place)

    with running_with_places(app, database_url) as harness:
        with harness.session() as session:
            session.add_all(Place(name=name, tenant="t", amount=1) for name in NAMES)
            session.flush()
        publish(harness, orders)
        assert places(harness) == {name: ("t", 7) for name in NAMES}


@ISOLATIONS
def test_what_listeners_add_after_a_flush_is_written(
    app: App, orders: Channel[Order], database_url: str, isolate: Any
) -> None:
    @app.flow(orders, retry=ONCE, isolate=isolate)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    def audit(session: Session, context: Any) -> None:
        session.add_all([Unique(name=one.name) for one in session.new if isinstance(one, Effect)])

    with running(app, database_url) as harness:
        with listening(Session, "after_flush", audit):
            publish(harness, orders)
        once(harness, *NAMES)
        with harness.session() as session:
            assert sorted(session.scalars(select(Unique.name))) == NAMES


@ISOLATIONS
def test_listeners_to_the_session_of_a_message_are_called(
    app: App, orders: Channel[Order], database_url: str, isolate: Any
) -> None:
    told: list[str] = []

    @app.flow(orders, retry=ONCE, isolate=isolate)
    def accept(order: Order, db: Session) -> None:
        event.listen(db, "before_commit", lambda session: session.add(Unique(name=order.name)))
        event.listen(db, "after_commit", lambda session: told.append(order.name))
        db.execute(INSERT, {"name": order.name})

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *NAMES)
        with harness.session() as session:
            assert sorted(session.scalars(select(Unique.name))) == NAMES
        assert sorted(told) == NAMES


# ---------------------------------------------------------------- connections


def test_options_that_a_listener_sets_are_of_one_message(app: App, orders: Channel[Order], database_url: str) -> None:
    seen: dict[str, object] = {}

    @app.flow(orders, retry=ONCE)
    def accept(order: Order, db: Session) -> None:
        token = tenant.set(order.name)
        try:
            result: Any = db.execute(text("SELECT 1"))
            seen[order.name] = result.connection.get_execution_options().get("tenant")
        finally:
            tenant.reset(token)

    def option(connection: Connection) -> None:
        connection.execution_options(tenant=tenant.get())

    with running(app, database_url) as harness, listening(Engine, "engine_connect", option):
        publish(harness, orders)
        assert seen == {name: name for name in NAMES}
