"""`async def` handlers: many at once on one thread, and everything that holds for plain ones."""

import asyncio
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from flowkit import (
    App,
    DefinitionError,
    FlowKitError,
    Message,
    Objects,
    Outbox,
    Reject,
    RetryAfter,
    RetryPolicy,
    StoreUnavailable,
    UnitOfWork,
)
from flowkit.engine.async_lane import STUBBORN_SECONDS
from flowkit.errors import StoreConflict
from flowkit.testing import Harness
from tests.shop import FAST, Effect, Order, Unique, new_app, once, running
from tests.test_traps import driver_commit

pytestmark = pytest.mark.migrated

SLOW = RetryPolicy(attempts=3, first="1h", jitter=0)


@pytest.fixture
def app() -> App:
    return new_app()


def put(name: str) -> Callable[[Session, Outbox], None]:
    """A unit of work that leaves one effect."""
    return lambda db, outbox: db.add(Effect(name=name))


# ---------------------------------------------------------------- definitions


async def takes_session(order: Order, db: Session) -> None: ...
async def takes_connection(order: Order, db: Connection) -> None: ...
async def sends_beside(order: Order, work: UnitOfWork, outbox: Outbox) -> None: ...
async def returns_beside(order: Order, work: UnitOfWork) -> Order:
    return order


def plain_with_work(order: Order, work: UnitOfWork) -> None: ...


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (takes_session, r"parameter db: Session .* async def .*take `work: UnitOfWork`.*await work\.run"),
        (takes_connection, r"parameter db: Connection .*take `work: UnitOfWork`"),
        (sends_beside, r"parameter outbox: Outbox would send beside its unit of work.*function\(session, outbox\)"),
        (returns_beside, r"returns Order besides its unit of work; send it inside"),
        (plain_with_work, r"parameter work: UnitOfWork is for async def.*`db: Session`"),
    ],
)
def test_row_64_what_concurrent_handlers_cannot_share_is_refused_by_name(
    app: App, handler: Callable[..., Any], says: str
) -> None:
    app.flow("orders", to="others")(handler)
    app.flow("others", name="sink")(lambda order: None)
    with pytest.raises(DefinitionError, match=rf"flow shop\.{handler.__name__}: .*{says}"), Harness(app):
        """It is refused before."""


def test_a_worker_has_at_most_so_many_at_work(app: App) -> None:
    async def handler(order: Order) -> None: ...

    with pytest.raises(DefinitionError, match="concurrency is at most 1000"):
        app.flow("orders", concurrency=1001)(handler)


# ---------------------------------------------------------------- what they do


def test_many_run_at_once_on_one_thread(app: App, database_url: str) -> None:
    together = most = 0
    threads = set()
    orders, done = app.channel("orders", Order), app.channel("done", Order, optional=True)

    @app.flow(orders, to=done, concurrency=200)
    async def fetch(order: Order) -> Order:
        nonlocal together, most
        together += 1
        most = max(most, together)
        threads.add(threading.get_ident())
        await asyncio.sleep(0.2)
        together -= 1
        return order

    with running(app, database_url) as harness:
        app.publish_many(orders, [Order(name=str(number)) for number in range(200)])
        harness.until_quiet()
        assert most == 200
        assert len(threads) == 1
        assert {order.name for order in harness.sent(done)} == {str(number) for number in range(200)}


def test_what_they_send_and_keep_commits_together(app: App, database_url: str) -> None:
    orders, parts, seen = app.channel("orders", Order), app.channel("parts", Order), []

    @app.flow(orders, to=parts)
    async def split(order: Order, message: Message, outbox: Outbox, objects: Objects) -> AsyncIterator[Order]:
        seen.append(await objects.get(order.name))
        objects.put(order.name, {"by": message.id}, ttl="1h")
        seen.append((await objects.get(order.name))["by"] == message.id)
        outbox.send(parts, Order(name="sent"), delay="1h")
        for number in range(2):
            await asyncio.sleep(0)
            yield Order(name=f"{order.name} {number}")
        if order.deed:
            raise Reject("never mind")

    @app.flow(parts)
    async def forget(part: Order, objects: Objects) -> None:
        seen.append(await objects.get("a") is not None)
        objects.delete("a")
        seen.append(await objects.get("a"))

    with running(app, database_url) as harness:
        harness.publish(orders, Order(name="a"))
        harness.publish(orders, Order(name="b", deed="reject"))
        harness.until_quiet()
        assert [order.name for order in harness.sent(parts)] == ["sent", "a 0", "a 1"]
        assert seen[:4].count(None) == 2, "both saw nothing before"
        deleted = [True, None, False, None]
        assert seen[4:] in (deleted, [True, None, *deleted], [True, True, None, None, *deleted[2:]]), "both had it"
        assert [letter.reason for letter in harness.dead()] == ["rejected"]


@pytest.mark.parametrize(
    ("wrong", "error"), [(lambda objects: objects.put("a", object()), "TypeError"), (lambda o: o.put("", 1), "its key")]
)
def test_what_cannot_be_kept_fails_where_it_is_put(app: App, wrong: Callable[[Objects], None], error: str) -> None:
    @app.flow("orders", retry=RetryPolicy(attempts=1))
    async def keep(order: dict[str, Any], objects: Objects) -> None:
        wrong(objects)

    with running(app, "sqlite:///:memory:") as harness:
        harness.publish("orders", {})
        harness.until_quiet()
        [letter] = harness.dead()
        assert "keep" in letter.stack


def test_failures_are_attempts_and_cost_no_neighbour(app: App, database_url: str) -> None:
    runs: dict[str, int] = {}

    @app.flow(
        orders := app.channel("orders", Order), to=(done := app.channel("done", Order, optional=True)), retry=SLOW
    )
    async def fetch(order: Order) -> Order:
        runs[order.name] = runs.get(order.name, 0) + 1
        await asyncio.sleep(0.001)
        if order.deed == "fail":
            raise ValueError("no")
        if order.deed == "later" and runs[order.name] == 1:
            raise RetryAfter("30s")
        if order.deed == "exit":
            raise SystemExit
        return order

    with running(app, database_url) as harness:
        for number in range(20):
            harness.publish(orders, Order(name=str(number), deed={3: "fail", 7: "later", 11: "exit"}.get(number, "")))
        harness.until_quiet()
        assert len(harness.sent(done)) == 17
        harness.advance("31s")
        assert len(harness.sent(done)) == 18
        harness.advance("2h")
        harness.advance("4h")
        assert {name: count for name, count in runs.items() if count > 1} == {"3": 3, "7": 2, "11": 3}
        assert sorted(letter.error for letter in harness.dead()) == ["SystemExit: ", "ValueError: no"]
        assert [letter.attempts for letter in harness.dead()] == [3, 3]


def test_a_deadline_cancels_and_counts(app: App) -> None:
    cancelled = []

    @app.flow(orders := app.channel("orders", Order), deadline="50ms", retry=FAST)
    async def hang(order: Order) -> None:
        try:
            await asyncio.sleep(3600 if order.deed else 0)
        except asyncio.CancelledError:
            cancelled.append(order.name)
            raise

    with running(app, "sqlite:///:memory:") as harness:
        harness.publish(orders, Order(name="a", deed="hang"))
        harness.publish(orders, Order(name="b"))
        for _ in range(3):
            harness.advance("1s")
        [letter] = harness.dead()
        assert (letter.reason, letter.attempts) == ("failed", 3)
        assert letter.error.startswith("DeadlinePassed: its handler ran past its deadline of 0.05s and was cancelled")
        assert cancelled == ["a"] * 3
        assert harness.balances()["shop.hang"].applied == 1


def test_its_own_timeout_and_its_own_cancellation_are_failures_like_others(app: App) -> None:
    @app.flow(orders := app.channel("orders", Order), retry=RetryPolicy(attempts=1))
    async def fetch(order: Order) -> None:
        if order.deed == "timeout":
            await asyncio.wait_for(asyncio.sleep(3600), 0.01)
        task = asyncio.create_task(asyncio.sleep(3600))
        task.cancel()
        await task

    with running(app, "sqlite:///:memory:") as harness:
        harness.publish(orders, Order(name="a", deed="timeout"))
        harness.publish(orders, Order(name="b"))
        harness.until_quiet()
        assert {letter.error.split(":")[0] for letter in harness.dead()} == {"TimeoutError", "CancelledError"}


def test_a_message_that_comes_twice_takes_effect_once(app: App) -> None:
    runs = 0
    orders, done = app.channel("orders", Order), app.channel("done", Order, optional=True)

    @app.flow(orders, to=done)
    async def fetch(order: Order) -> Order:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.01)
        return order

    with running(app, "sqlite:///:memory:", broker=True) as harness:
        app.publish_many(orders, [Order(name=str(number)) for number in range(20)])
        harness.worker.relay.step()
        harness.broker.duplicate("shop.fetch")
        [lane] = harness.worker.lanes
        lane.step()  # all are at work
        assert lane.running == 20, "the same message twice in a batch runs once"
        harness.broker.disconnect()  # and are handed out again
        harness.until_quiet()
        assert runs > 20, "no duplicate ran: nothing was tested"
        assert len(harness.sent(done)) == 20
        assert harness.balances()["shop.fetch"].applied == 20


def test_publishing_from_inside_is_refused(app: App) -> None:
    @app.flow(orders := app.channel("orders", Order), retry=RetryPolicy(attempts=1))
    async def fetch(order: Order) -> None:
        await app.publish_async(orders, order)

    with running(app, "sqlite:///:memory:") as harness:
        harness.publish(orders, Order(name="a"))
        harness.until_quiet()
        assert "published from inside its handler" in harness.dead()[0].error


class Client:
    """Something that lives on the event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()


def test_what_is_provided_may_live_on_the_loop(app: App) -> None:
    told = []

    @asynccontextmanager
    async def client() -> AsyncIterator[Client]:
        task = asyncio.current_task()
        yield Client()
        told.append(asyncio.current_task() is task)

    @app.flow(orders := app.channel("orders", Order))
    async def fetch(order: Order, client: Client) -> None:
        told.append(asyncio.get_running_loop() is client.loop)

    app.provide(Client, client)
    with running(app, "sqlite:///:memory:") as harness:
        harness.publish(orders, Order(name="a"))
        harness.until_quiet()
    assert told == [True, True], "used on its loop, then left by the task that entered it"


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
