"""Lanes and the work of their handlers: cancelled, given up, finished at the end, at rest."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session

from flowkit import App, Channel, FlowKitError, Objects, Outbox, RetryPolicy, UnitOfWork
from flowkit.engine.directions import shed
from flowkit.engine.worker import Worker
from flowkit.services import connect
from flowkit.settings import Settings
from flowkit.testing import Harness
from tests.support.shop import Effect, Order, effects, new_app, once, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.migrated


# ---------------------------------------------------------------- a handler that is cancelled


def unattended(harness: Harness, channel: Channel[Order]) -> None:
    """Publish a message, and let its handler end while nobody does its errands."""
    [lane] = harness.worker.lanes
    harness.publish(channel, Order(name="a"))
    lane.step()
    wait_until(lambda: lane.running == 0)
    harness.until_quiet()


async def by_its_timeout(work: UnitOfWork) -> None:
    async with asyncio.timeout(0.01):
        await work.run(lambda db, outbox: db.add(Effect(name="a")))


async def by_a_sibling(work: UnitOfWork) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(work.run(lambda db, outbox: db.add(Effect(name="a"))))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        raise ValueError("no")


@pytest.mark.parametrize("cancels", [by_its_timeout, by_a_sibling])
def test_a_handler_that_cancels_its_own_work_has_failed(
    app: App, sqlite_url: str, cancels: Callable[[UnitOfWork], Awaitable[None]]
) -> None:
    @app.flow(orders := app.channel("orders", Order), retry=RetryPolicy(attempts=1))
    async def store(order: Order, work: UnitOfWork) -> None:
        await cancels(work)

    with running(app, sqlite_url) as harness:
        unattended(harness, orders)
        assert [(letter.reason, letter.attempts) for letter in harness.dead()] == [("failed", 1)]
        once(harness)


def test_a_deadline_that_passes_before_the_work_could_begin_is_no_attempt(app: App, sqlite_url: str) -> None:
    @app.flow(orders := app.channel("orders", Order), deadline="500ms", retry=RetryPolicy(attempts=1))
    async def store(order: Order, work: UnitOfWork) -> None:
        await work.run(lambda db, outbox: db.add(Effect(name=order.name)))

    with running(app, sqlite_url) as harness:
        unattended(harness, orders)
        once(harness, "a")


def test_work_that_its_handler_gave_up_is_undone_and_can_be_run_again(app: App, database_url: str) -> None:
    began = threading.Event()

    @app.flow(orders := app.channel("orders", Order), retry=RetryPolicy(attempts=1))
    async def store(order: Order, work: UnitOfWork) -> None:
        def slow(db: Session, outbox: Outbox) -> None:
            db.add(Effect(name="never"))
            began.set()
            time.sleep(0.3)

        task = asyncio.ensure_future(work.run(slow))
        while not began.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await work.run(lambda db, outbox: db.add(Effect(name=order.name)))

    with running(app, database_url) as harness:
        harness.publish(orders, Order(name="a"))
        harness.until_quiet()
        once(harness, "a")


# ---------------------------------------------------------------- what comes too late


def test_what_is_kept_or_sent_after_the_work_is_refused(
    app: App, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    orders, done = app.channel("orders", Order), app.channel("done", Order, optional=True)
    kept: list[Any] = []

    @app.flow(orders, to=done)
    async def store(order: Order, work: UnitOfWork, objects: Objects) -> None:
        def write(db: Session, outbox: Outbox) -> Outbox:
            outbox.send(done, order)
            return outbox

        objects.put("before", 1)
        outbox = await work.run(write)
        kept.append(await objects.get("before"))
        with pytest.raises(FlowKitError, match=r"objects\.delete\(\) .* do it before work\.run\(\)"):
            objects.delete("before")
        with pytest.raises(FlowKitError, match=r"outbox\.send\(\) .* send inside the function"):
            outbox.send(done, order)
        objects.put("after", 1)

    @app.flow(done)
    async def look(order: Order, objects: Objects) -> None:
        kept.append([await objects.get("before"), await objects.get("after")])

    with running(app, database_url) as harness:
        harness.publish(orders, Order(name="a"))
        harness.until_quiet()
        assert kept == [1, [1, None]]
        assert len(harness.sent(done)) == 1
        assert "objects.put() was called after message" in caplog.text


# ---------------------------------------------------------------- a worker that ends


def test_row_7_what_has_begun_is_finished_at_the_end_though_the_broker_takes_nothing(app: App, sqlite_url: str) -> None:
    begun, go_on = threading.Event(), threading.Event()
    services = connect(Settings(database_url=sqlite_url, broker_url=""))

    @app.flow(orders := app.channel("orders", Order))
    async def store(order: Order, work: UnitOfWork) -> None:
        begun.set()
        await asyncio.to_thread(go_on.wait)
        await work.run(lambda db, outbox: db.add(Effect(name=order.name)))

    worker = Worker(app, services)
    thread = threading.Thread(target=worker.run, args=(5.0,))
    thread.start()
    app.publish(orders, Order(name="a"))
    assert begun.wait(30)
    worker.relay.clogged = True
    worker.stop()
    go_on.set()
    thread.join(30)
    with Session(services.store.dialect.engine) as session:  # type: ignore[attr-defined]
        assert effects(session) == {"a": 1}
    app.close()


@pytest.mark.parametrize("name", ["shop.accept", "shop"])
def test_a_paused_flow_begins_nothing_until_it_is_resumed(database_url: str, name: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    @app.flow(orders)
    def other(order: Order) -> None: ...

    with running(app, database_url) as harness:
        harness.store.directions.set("paused", [name], 1)
        harness.advance(1)
        harness.publish(orders, Order(name="a"))
        harness.until_quiet()
        balances = harness.balances()
        assert (balances["shop.accept"].applied, balances["shop.accept"].pending) == (0, 1)
        assert balances["shop.other"].applied == (name != "shop")
        harness.store.directions.set("paused", [name], None)
        harness.advance(1)
        harness.until_quiet()
        once(harness, "a")


def test_flows_of_low_priority_rest_while_the_service_is_reduced(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = new_app()
    orders = app.channel("orders", Order)
    for name, priority in (("report", 0), ("mail", 1), ("accept", 2)):

        def handler(order: Order, db: Session, name: str = name) -> None:
            db.add(Effect(name=f"{name} {order.name}"))

        app.flow(orders, name=name, priority=priority)(handler)
    with running(app, database_url) as harness:
        monkeypatch.setattr(harness.store.fleet, "ready", lambda app: 1)
        harness.store.directions.set("minimum", ["shop"], 1)
        for number, (normal, rest) in enumerate([(1, set()), (2, {"report", "mail"}), (1, set())]):
            harness.store.directions.set("normal", ["shop"], normal)
            harness.advance(1)
            harness.publish(orders, Order(name=str(number)))
            harness.until_quiet()
            with harness.session() as session:
                done = {name.split()[0] for name in effects(session) if name.endswith(str(number))}
            assert {"report", "mail", "accept"} - done == rest
        with harness.session() as session:
            assert len(effects(session)) == 9


@pytest.mark.parametrize(("ready", "rest"), [(6, 0), (5, 0), (4, 1), (3, 2), (2, 2), (1, 2), (0, 2)], ids=str)
def test_what_rests_is_in_proportion_to_the_workers_that_are_missing(ready: int, rest: int) -> None:
    app = new_app()
    for number in (3, 1, 2):
        app.flow("orders", name=f"flow{number}", priority=number)(lambda order: None)
    assert shed(app.flows.values(), ready, 5, 3) == {f"shop.flow{number}" for number in range(1, rest + 1)}
    alike = new_app()
    alike.flow("orders", name="one")(lambda order: None)
    assert shed(alike.flows.values(), ready, 5, 3) == frozenset()
