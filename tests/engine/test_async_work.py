"""The unit of work of `async def` handlers: it commits with the claim, and a failed one leaves nothing."""

import asyncio
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from flowkit import (
    App,
    FlowKitError,
    Outbox,
    RetryPolicy,
    StoreUnavailable,
    UnitOfWork,
)
from flowkit.engine.handler_tasks import STUBBORN_SECONDS
from flowkit.errors import StoreConflict
from tests.support.breaches import driver_commit
from tests.support.shop import FAST, Effect, Order, Unique, once, running

pytestmark = pytest.mark.migrated


def put(name: str) -> Callable[[Session, Outbox], None]:
    """A unit of work that leaves one effect."""
    return lambda db, outbox: db.add(Effect(name=name))


# ---------------------------------------------------------------- the unit of work


def test_a_unit_of_work_commits_the_claim_the_effects_and_what_is_sent(app: App, database_url: str) -> None:
    orders, done = app.channel("orders", Order), app.channel("done", Order, optional=True)

    @app.flow(orders, to=done)
    async def store(order: Order, work: UnitOfWork) -> None:
        await asyncio.sleep(0.001)

        def write(db: Session, outbox: Outbox) -> int:
            db.add(Effect(name=order.name))
            outbox.send(done, order)
            return threading.get_ident()

        assert await work.run(write) != threading.get_ident()

    with running(app, database_url) as harness:
        for number in range(10):
            harness.publish(orders, Order(name=str(number)))
        harness.until_quiet()
        once(harness, *(str(number) for number in range(10)))
        assert len(harness.sent(done)) == 10
        assert harness.balances()["shop.store"].applied == 10


def test_a_failed_unit_of_work_leaves_nothing_and_can_be_run_again(app: App, database_url: str) -> None:
    orders, done = app.channel("orders", Order), app.channel("done", Order, optional=True)

    @app.flow(orders, to=done, retry=FAST)
    async def store(order: Order, work: UnitOfWork) -> None:
        def refused(db: Session, outbox: Outbox) -> None:
            outbox.send(done, Order(name="never"))
            db.add(Effect(name="never"))
            db.add_all([Unique(name=order.name), Unique(name=order.name)])

        with pytest.raises(IntegrityError):
            await work.run(refused)
        if order.deed:
            raise ValueError("given up")
        await work.run(put(order.name))

    with running(app, database_url) as harness:
        harness.publish(orders, Order(name="a"))
        harness.publish(orders, Order(name="b", deed="give up"))
        for _ in range(3):
            harness.advance("1s")
        once(harness, "a")
        assert harness.sent(done) == []
        assert [(letter.attempts, letter.error) for letter in harness.dead()] == [(3, "ValueError: given up")]


def test_a_second_unit_of_work_is_refused_and_a_failure_after_the_first_changes_nothing(
    app: App, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    @app.flow(orders := app.channel("orders", Order), retry=FAST)
    async def store(order: Order, work: UnitOfWork) -> None:
        await work.run(put(order.name))
        with pytest.raises(FlowKitError, match=r"work\.run\(\) was called again for message"):
            await work.run(put(order.name))
        raise ValueError("too late")

    with running(app, database_url) as harness, caplog.at_level(logging.ERROR):
        harness.publish(orders, Order(name="a"))
        harness.until_quiet()
        once(harness, "a")
        assert harness.balances()["shop.store"].applied == 1
        assert "failed after work.run() had committed" in caplog.text
        assert "ValueError: too late" in caplog.text


@pytest.mark.parametrize("error", [StoreUnavailable("away"), StoreConflict("busy")], ids=["away", "conflict"])
def test_a_store_that_is_missed_is_no_attempt_even_if_it_is_swallowed(app: App, error: Exception) -> None:
    runs = 0

    @app.flow(orders := app.channel("orders", Order), retry=RetryPolicy(attempts=1))
    async def store(order: Order, work: UnitOfWork) -> None:
        nonlocal runs
        runs += 1

        def write(db: Session, outbox: Outbox) -> None:
            db.add(Effect(name=order.name))
            if runs == 1:
                raise error

        try:
            await work.run(write)
        except FlowKitError:
            """Swallowed: the message must not seem done."""

    with running(app, "sqlite:///:memory:") as harness:
        harness.publish(orders, Order(name="a"))
        harness.until_quiet()
        once(harness, "a")


def test_a_unit_of_work_past_its_deadline_is_undone(app: App, database_url: str) -> None:
    @app.flow(orders := app.channel("orders", Order), deadline="100ms", retry=RetryPolicy(attempts=1))
    async def store(order: Order, work: UnitOfWork) -> None:
        def write(db: Session, outbox: Outbox) -> None:
            db.add(Effect(name=order.name))
            time.sleep(0.3)

        await work.run(write)

    with running(app, database_url) as harness:
        harness.publish(orders, Order(name="a"))
        harness.until_quiet()
        once(harness)
        assert harness.dead()[0].error.startswith("DeadlinePassed")


@pytest.mark.parametrize(
    "error",
    [StopIteration, StopAsyncIteration, GeneratorExit, asyncio.CancelledError, KeyboardInterrupt, SystemExit],
)
def test_what_asyncio_takes_for_a_signal_is_a_failure_of_a_unit_of_work(app: App, error: type[BaseException]) -> None:
    orders, done = app.channel("orders", Order), app.channel("done", Order, optional=True)

    @app.flow(orders, to=done, deadline="2s", retry=RetryPolicy(attempts=1))
    async def store(order: Order, work: UnitOfWork) -> None:
        def write(db: Session, outbox: Outbox) -> None:
            db.add(Effect(name=order.name))
            outbox.send(done, order)
            if order.deed:
                raise error

        async def run(part: Awaitable[None]) -> None:
            await part

        if order.deed == "in a task":  # a task group takes a cancellation inside for none of its business
            async with asyncio.TaskGroup() as group:
                group.create_task(run(work.run(write)))
        else:
            await work.run(write)

    with running(app, "sqlite:///:memory:") as harness:
        for name, deed in [("a", "raise"), ("b", "in a task"), ("c", "")]:
            harness.publish(orders, Order(name=name, deed=deed))
        harness.until_quiet()
        once(harness, "c")
        assert [order.name for order in harness.sent(done)] == ["c"]
        stacks = [letter.stack for letter in harness.dead()]
        assert [f"RuntimeError: work.run(): write raised {error.__name__}" in stack for stack in stacks] == [True, True]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_task_that_exits_ends_its_handler_and_not_the_loop_of_all(app: App, error: type[BaseException]) -> None:
    @app.flow(orders := app.channel("orders", Order), deadline="2s", retry=RetryPolicy(attempts=1))
    async def fetch(order: Order) -> None:
        async def leave() -> None:
            if order.deed:
                raise error

        await asyncio.create_task(leave())

    with running(app, "sqlite:///:memory:") as harness:
        harness.publish(orders, Order(name="a", deed="exit"))
        harness.publish(orders, Order(name="b"))
        harness.until_quiet()
        assert [letter.error.split(":")[0] for letter in harness.dead()] == [error.__name__]
        assert harness.balances()["shop.fetch"].applied == 1


async def writes_as_coroutine(db: Session, outbox: Outbox) -> None:
    db.add(Effect(name="never"))


def writes_as_generator(db: Session, outbox: Outbox) -> Iterator[int]:
    db.add(Effect(name="never"))
    yield 1


async def writes_as_both(db: Session, outbox: Outbox) -> AsyncIterator[int]:
    db.add(Effect(name="never"))
    yield 1


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (writes_as_coroutine, r"writes_as_coroutine returned a coroutine, .*; write a plain def"),
        (writes_as_generator, r"writes_as_generator returned a generator, "),
        (writes_as_both, r"writes_as_both returned an async_generator, "),
        (lambda db, outbox: writes_as_coroutine(outbox=outbox, db=db), r"<lambda> returned a coroutine, "),
        (lambda db, outbox: map(db.add, [Effect(name="never")]), r"<lambda> returned a map, "),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_unit_of_work_that_does_nothing_until_somebody_goes_on_with_it_is_refused(
    app: App, function: Callable[[Session, Outbox], Any], says: str
) -> None:
    @app.flow(orders := app.channel("orders", Order), retry=RetryPolicy(attempts=1))
    async def store(order: Order, work: UnitOfWork) -> None:
        await work.run(function)

    with running(app, "sqlite:///:memory:") as harness:
        harness.publish(orders, Order(name="a"))
        harness.until_quiet()
        once(harness)
        [letter] = harness.dead()
        assert re.search(says, letter.stack)


def test_of_two_units_of_work_at_once_the_second_is_refused_by_name(
    app: App, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[object] = []

    @app.flow(orders := app.channel("orders", Order), retry=FAST)
    async def store(order: Order, work: UnitOfWork) -> None:
        told.extend(await asyncio.gather(work.run(put("a")), work.run(put("b")), return_exceptions=True))
        await asyncio.gather(work.run(put("c")), work.run(put("d")))

    with running(app, database_url) as harness, caplog.at_level(logging.ERROR):
        harness.publish(orders, Order(name="a"))
        harness.until_quiet()
        once(harness, "a")
        assert told[0] is None
        assert "work.run() was called again for message" in str(told[1])
        assert "failed after work.run() had committed" in caplog.text


def test_a_duplicate_does_not_run_its_unit_of_work(app: App) -> None:
    ran = []

    @app.flow(orders := app.channel("orders", Order))
    async def store(order: Order, work: UnitOfWork) -> None:
        try:
            await work.run(lambda db, outbox: ran.append(order.name))
        except Exception:
            ran.append("a duplicate is no failure that a handler could catch")

    with running(app, "sqlite:///:memory:", broker=True) as harness:
        harness.publish(orders, Order(name="a"))
        harness.worker.relay.step()
        harness.broker.duplicate("shop.store")
        harness.until_quiet()
        assert ran == ["a"]


def test_row_50_it_cannot_end_its_transaction(app: App, database_url: str) -> None:
    @app.flow(orders := app.channel("orders", Order))
    async def store(order: Order, work: UnitOfWork) -> None:
        def write(db: Session, outbox: Outbox) -> None:
            db.add(Effect(name=order.name))
            if order.deed:
                db.commit()

        await work.run(write)

    with running(app, database_url) as harness:
        for number in range(5):
            harness.publish(orders, Order(name=str(number), deed="commit" if number == 2 else ""))
        harness.until_quiet()
        once(harness, "0", "1", "3", "4")
        assert [letter.reason for letter in harness.dead()] == ["rejected"]


def test_row_50_going_round_by_the_driver_stops_the_flow_by_name(app: App, database_url: str) -> None:
    @app.flow(orders := app.channel("orders", Order), concurrency=1)
    async def store(order: Order, work: UnitOfWork) -> None:
        def write(db: Session, outbox: Outbox) -> None:
            db.add(Effect(name=order.name))
            driver_commit(db)

        await work.run(write)

    with running(app, database_url) as harness:
        for number in range(5):
            harness.publish(orders, Order(name=str(number)))
        harness.until_quiet()
        assert "flow shop.store is stopped" in harness.worker.lanes[0].stopped
        balance = harness.balances()["shop.store"]
        assert (balance.dead, balance.pending) == (1, 4)


def test_hundreds_keep_a_few_connections_busy(app: App, postgresql_url: str) -> None:
    @app.flow(orders := app.channel("orders", Order), concurrency=200)
    async def store(order: Order, work: UnitOfWork) -> None:
        await asyncio.sleep(0.01)
        await work.run(put(order.name))

    with running(app, postgresql_url) as harness:
        app.publish_many(orders, [Order(name=str(number)) for number in range(300)])
        harness.until_quiet()
        once(harness, *(str(number) for number in range(300)))
        pool: Any = harness.store.dialect.engine.pool
        assert pool.checkedin() + pool.checkedout() <= 6


def test_row_10_a_handler_that_swallows_its_cancellation_is_found(app: App) -> None:
    go_on = asyncio.Event()

    @app.flow(orders := app.channel("orders", Order), deadline="10ms")
    async def stubborn(order: Order) -> None:
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue

    with running(app, "sqlite:///:memory:") as harness:
        harness.publish(orders, Order(name="a"))
        [lane] = harness.worker.lanes
        lane.step()
        now = harness.clock.monotonic()
        assert lane.late(now + STUBBORN_SECONDS) is None
        assert lane.late(now + STUBBORN_SECONDS + 1) is not None
        harness.worker._loop.call(go_on.set)
        harness.until_quiet()
