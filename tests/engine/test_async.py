"""`async def` handlers: many at once on one thread, and everything that holds for plain ones."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import Connection
from sqlalchemy.orm import Session

from flowkit import (
    App,
    DefinitionError,
    Message,
    Objects,
    Outbox,
    Reject,
    RetryAfter,
    RetryPolicy,
    UnitOfWork,
)
from flowkit.testing import Harness
from tests.support.shop import FAST, Order, running

pytestmark = pytest.mark.migrated

SLOW = RetryPolicy(attempts=3, first="1h", jitter=0)


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
