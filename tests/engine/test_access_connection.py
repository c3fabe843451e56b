"""A handler that ends, commits or blocks its connection by the driver is charged for it, on both stores."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from flowkit import App, Channel, Objects, Outbox, RetryPolicy, UnitOfWork
from flowkit.engine.triage import DEATHS
from flowkit.errors import FlowKitError
from tests.support.access import CULPRIT, ISOLATIONS, NAMES, OTHERS, Deed, on, publish, swallow, there
from tests.support.shop import FAST, Effect, Order, once, running

pytestmark = pytest.mark.migrated


# ---------------------------------------------------------------- connections that die


def close(db: Session) -> None:
    driver: Any = db.connection().connection.driver_connection
    driver.close()


def invalidate(db: Session) -> None:
    db.connection().connection.invalidate()


def terminate(db: Session) -> None:
    db.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


@ISOLATIONS
@pytest.mark.parametrize(
    ("database", "deed"),
    [
        on("sqlite", close),
        on("sqlite", invalidate),
        on("postgresql", close),
        on("postgresql", invalidate),
        on("postgresql", terminate),
    ],
)
def test_a_handler_that_ends_its_connection_is_charged(
    app: App, orders: Channel[Order], request: pytest.FixtureRequest, isolate: Any, database: str, deed: Deed
) -> None:
    runs: list[str] = []

    @app.flow(orders, retry=RetryPolicy(attempts=2, first="10ms", factor=1, jitter=0), isolate=isolate)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            runs.append(order.name)
            deed(db)

    with running(app, request.getfixturevalue(database)) as harness:
        for name in NAMES:
            harness.publish(orders, Order(name=name, deed="x" if name == CULPRIT else ""))
        for _ in range(2 * DEATHS + 2):
            try:
                harness.advance("1s")
            except FlowKitError:
                """The store seems to be away: a worker tries again."""
        once(harness, *OTHERS)
        (letter,) = harness.dead()
        assert letter.attempts == 2
        assert f"its connection died {DEATHS} times as the message ran alone" in letter.error
        assert len(runs) >= 2 * DEATHS


def leave_a_copy_open(driver: Any) -> Any:
    copy = driver.cursor().copy("COPY effects (name) FROM STDIN")
    copy.__enter__()
    return copy


def leave_a_stream_open(driver: Any) -> Any:
    rows = driver.cursor().stream("SELECT generate_series(1, 100000)")
    next(rows)
    return rows


def leave_a_pipeline_open(driver: Any) -> Any:
    pipeline = driver.pipeline()
    pipeline.__enter__()
    driver.execute("INSERT INTO effects (name) VALUES ('unseen')")
    return pipeline


@pytest.mark.postgresql
@pytest.mark.parametrize("deed", [leave_a_copy_open, leave_a_stream_open, leave_a_pipeline_open])
def test_a_handler_that_leaves_a_command_of_the_driver_open_is_charged(
    app: App, orders: Channel[Order], postgresql_url: str, deed: Callable[[Any], Any]
) -> None:
    left: list[Any] = []

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            left.append(deed(db.connection().connection.driver_connection))

    with running(app, postgresql_url) as harness:
        for name in NAMES:
            harness.publish(orders, Order(name=name, deed="x" if name == CULPRIT else ""))
        for _ in range(DEATHS + 1):
            with suppress(FlowKitError):  # the store seems to be away: a worker tries again
                harness.advance("1s")
        once(harness, *OTHERS)
        (letter,) = harness.dead()
        assert "left a COPY, a stream or a pipeline of the driver open" in letter.error


@pytest.mark.parametrize(("database", "deed"), [on("sqlite", close), on("postgresql", close)])
def test_a_function_of_the_work_that_ends_its_connection_is_charged(
    app: App, orders: Channel[Order], request: pytest.FixtureRequest, database: str, deed: Deed
) -> None:
    @app.flow(orders, retry=RetryPolicy(attempts=2, first="10ms", factor=1, jitter=0))
    async def accept(order: Order, work: UnitOfWork) -> None:
        def write(db: Session, outbox: Outbox) -> None:
            db.add(Effect(name=order.name))
            if order.deed:
                deed(db)

        await work.run(write)

    with running(app, request.getfixturevalue(database)) as harness:
        for name in NAMES:
            harness.publish(orders, Order(name=name, deed="x" if name == CULPRIT else ""))
        for _ in range(2 * DEATHS + 2):
            harness.advance("1s")
        once(harness, *OTHERS)
        (letter,) = harness.dead()
        assert letter.attempts == 2
        assert f"its connection died {DEATHS} times as the message ran alone" in letter.error


def commit_and_close(db: Session) -> None:
    driver: Any = db.connection().connection.driver_connection
    driver.commit()
    driver.close()


def commit_and_fail(db: Session) -> None:
    driver: Any = db.connection().connection.driver_connection
    driver.execute("COMMIT")
    driver.execute("BEGIN")
    raise ValueError("no")


@ISOLATIONS
@pytest.mark.parametrize("deed", [commit_and_close, commit_and_fail])
def test_row_50_a_commit_by_the_driver_loses_nothing_whatever_follows(
    app: App, orders: Channel[Order], database_url: str, isolate: Any, deed: Deed
) -> None:
    @app.flow(orders, retry=FAST, isolate=isolate, concurrency=1)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            db.flush()
            deed(db)

    with running(app, database_url) as harness:
        publish(harness, orders)
        assert "flow shop.accept is stopped" in harness.worker.lanes[0].stopped
        balance = harness.balances()["shop.accept"]
        assert balance.accepted == 10 == balance.applied + balance.dead + balance.pending
        assert balance.pending == 5


@ISOLATIONS
@pytest.mark.parametrize("wanted", [Connection, Objects])
def test_nothing_is_written_after_a_swallowed_error_by_other_ways(
    app: App, orders: Channel[Order], database_url: str, isolate: Any, wanted: type
) -> None:
    def accept(order: Order, db: Session, other: Any) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            swallow(db)
            if wanted is Objects:
                other.put("leak", 1)
            else:
                other.execute(text("INSERT INTO effects (name) VALUES ('leak')"))

    accept.__annotations__["other"] = wanted
    app.flow(orders, retry=FAST, isolate=isolate)(accept)
    with running(app, database_url) as harness:
        there(harness, "there")
        publish(harness, orders)
        once(harness, *OTHERS)
        assert len(harness.dead()) == 1
        with harness.session() as session:
            assert not session.scalar(text("SELECT count(*) FROM flowkit_objects"))
