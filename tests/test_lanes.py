"""Lanes at their ends: a flow that stops, a handler that is cancelled or kills its process, a worker that finishes."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from unittest.mock import patch

import pytest
from sqlalchemy.orm import Session

from flowkit import App, Channel, FlowKitError, Objects, Outbox, RetryPolicy, StoreUnavailable, UnitOfWork
from flowkit.engine.async_lane import AsyncLane
from flowkit.engine.directions import shed
from flowkit.engine.item import Item
from flowkit.engine.lane import Lane
from flowkit.engine.worker import Worker
from flowkit.errors import TransactionEnded
from flowkit.message import BATCH_BYTES
from flowkit.ports import LANES
from flowkit.services import connect
from flowkit.settings import Settings
from flowkit.store.unit import SqlUnit
from flowkit.testing import Harness
from tests.shop import Effect, Order, effects, new_app, once, running
from tests.test_rabbitmq import Shop, wait_until
from tests.test_traps import driver_commit

pytestmark = pytest.mark.migrated


@pytest.fixture
def app() -> App:
    return new_app()


@pytest.mark.parametrize("concurrent", [False, True], ids=["plain", "async"])
def test_a_duplicate_is_acknowledged_when_its_message_is_at_an_end_and_not_before(
    app: App, sqlite_url: str, concurrent: bool
) -> None:
    """After a reconnect the broker may know the second delivery only; the first one is in this process alone."""
    orders = app.channel("orders", Order)
    go = asyncio.Event()

    ran: list[str] = []

    async def wait(order: Order, db: UnitOfWork) -> None:
        ran.append(order.name)
        await go.wait()

    def store(order: Order, db: Session) -> None:
        ran.append(order.name)
        db.add(Effect(name=order.name))

    app.flow(orders, name="store")(wait if concurrent else store)
    with Harness(app, sqlite_url, broker=True) as harness:
        worker, transport = harness.worker, harness.broker
        for name in ("first", "second"):
            app.publish(orders, Order(name=name))
        while worker.relay.step():
            """They go to the broker."""
        transport.duplicate("shop.store")
        [lane] = worker.lanes
        lane.pipeline.halted = lambda: not concurrent  # one message, and the rest of the batch stays in the lane
        for _ in range(2 if concurrent else 1):
            lane.step()
        left = 4 if concurrent else 2
        assert transport.depths(["shop.store"]) == {"shop.store": left}
        if concurrent:
            worker._loop.run(_set(go))
        lane.pipeline.halted = lambda: False
        harness.until_quiet()
        assert transport.depths(["shop.store"]) == {"shop.store": 0}
        assert harness.balances()["shop.store"].applied == 2
        assert sorted(ran) == ["first", "second"]


@pytest.mark.parametrize("broker", [False, True], ids=["rows", "broker"])
def test_a_batch_ends_with_the_message_that_makes_it_large(app: App, sqlite_url: str, broker: bool) -> None:
    """As objects, JSON takes many times its size: a backlog of large messages is not read all at once."""
    files = app.channel("files", bytes)
    ran: list[int] = []

    @app.flow(files)
    def keep(file: bytes) -> None:
        ran.append(file[0])

    with Harness(app, sqlite_url, broker=broker) as harness:
        for number in range(4):
            app.publish(files, bytes([number]) * (BATCH_BYTES // 2 + 1 if number < 3 else 1))
        while harness.worker.relay.step():
            """They go to the broker, where there is one."""
        [lane] = harness.worker.lanes
        steps = []
        while lane.step():
            steps.append((sorted(ran), lane.full, [item.body for item in lane.pipeline.items]))
            ran.clear()
    assert steps[:2] == [([0, 1], True, [None, None]), ([2, 3], False, [None, None])]


def test_a_commit_that_failed_is_no_end_for_a_duplicate_either(app: App, sqlite_url: str) -> None:
    @app.flow(orders := app.channel("orders", Order))
    async def store(order: Order) -> None:
        """Nothing is to be done."""

    with Harness(app, sqlite_url, broker=True) as harness:
        app.publish(orders, Order(name="one"))
        while harness.worker.relay.step():
            """It goes to the broker."""
        harness.broker.duplicate("shop.store")
        [lane] = harness.worker.lanes
        assert isinstance(lane, AsyncLane)
        lane.step()
        wait_until(lambda: bool(lane._ends))
        with patch.object(SqlUnit, "commit", side_effect=StoreUnavailable("away")), suppress(StoreUnavailable):
            lane.step()
        assert len(lane._ready) == 1
        assert harness.broker.depths(["shop.store"]) == {"shop.store": 2}
        harness.until_quiet()
        assert harness.balances()["shop.store"].applied == 1


def test_news_of_a_lane_wakes_that_lane_and_no_other(app: App, sqlite_url: str) -> None:
    @app.flow(app.channel("orders", Order))
    async def store(order: Order) -> None:
        """Nothing is to be done."""

    services = connect(Settings(database_url=sqlite_url))
    services.store.directions.set(LANES, ["shop.store"], 2)
    worker = Worker(app, services)
    for lane in reversed(worker.lanes):
        assert isinstance(lane, AsyncLane)
        worker.dispatcher._hot.clear()
        lane._tell()
        assert list(worker.dispatcher._hot) == [lane]
    worker.close()
    services.close()


async def _set(event: asyncio.Event) -> None:
    event.set()


# ---------------------------------------------------------------- a flow that stops


@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize("broker", [False, True], ids=["rows", "broker"])
def test_row_50_who_goes_round_by_the_driver_is_dead_and_nobody_else(
    app: App, database_url: str, broker: bool, swallows: bool
) -> None:
    @app.flow(orders := app.channel("orders", Order))
    async def store(order: Order, work: UnitOfWork) -> None:
        def write(db: Session, outbox: Outbox) -> None:
            db.add(Effect(name=order.name))
            if order.deed:
                driver_commit(db)

        try:
            await work.run(write)
        except Exception:
            if not swallows:
                raise

    with running(app, database_url, broker=broker) as harness:
        app.publish_many(orders, [Order(name=str(number), deed="x" if number == 2 else "") for number in range(5)])
        harness.until_quiet()
        assert "flow shop.store is stopped" in harness.worker.lanes[0].stopped
        assert [orders.body.decode(letter.message.body).name for letter in harness.dead()] == ["2"]
        balance = harness.balances()["shop.store"]
        assert balance.applied + balance.pending == 4, "the others are applied, or given back"
        with harness.session() as session:
            assert session.query(Effect).count() == balance.applied + 1, "the culprit's was out of our hands, once"


@pytest.mark.parametrize("concurrent", [False, True], ids=["plain", "async"])
def test_row_50_a_suspect_that_stops_its_flow_is_dead_alone_though_the_store_is_away_just_then(
    app: App, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, concurrent: bool
) -> None:
    orders = app.channel("orders", Order)

    def write(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            driver_commit(db)

    async def store(order: Order, work: UnitOfWork) -> None:
        await work.run(lambda db, outbox: write(order, db))

    app.flow(orders, name="store")(store if concurrent else write)
    with running(app, sqlite_url, broker=True) as harness:
        [lane] = harness.worker.lanes
        ids = [harness.publish(orders, Order(name=name, deed=deed)) for name, deed in (("0", "x"), ("1", ""))]
        for id in ids:
            harness.store.suspects.charge(("shop.store", "shop", id), "gone", late=False)
        harness.worker.relay.step()
        quarantine = lane.pipeline.quarantine

        def away(error: TransactionEnded) -> list[Item]:
            monkeypatch.setattr(lane.pipeline, "quarantine", quarantine)
            raise StoreUnavailable("away")

        monkeypatch.setattr(lane.pipeline, "quarantine", away)
        lane.step()
        assert len(lane.suspects) == 2
        with pytest.raises(StoreUnavailable):
            lane.step_alone()
        lane.step_alone()
        assert lane.stopped
        harness.until_quiet()
        assert [letter.message.id for letter in harness.dead()] == ids[:1]
        assert harness.balances()["shop.store"].pending == 1
        once(harness, "0")


@pytest.mark.parametrize(("times", "together"), [(2, 8), (3, 4), (4, 2), (5, 1)])
@pytest.mark.parametrize("concurrent", [False, True], ids=["plain", "async"])
def test_row_2_what_was_handed_out_again_and_again_runs_in_ever_smaller_company(
    app: App, sqlite_url: str, concurrent: bool, times: int, together: int
) -> None:
    orders = app.channel("orders", Order)
    batches: list[int] = []
    at_work: set[str] = set()

    async def wait(order: Order) -> None:
        at_work.add(order.name)
        batches.append(len(at_work))
        await asyncio.sleep(0)
        at_work.discard(order.name)

    if concurrent:
        app.flow(orders, name="accept", concurrency=8)(wait)
    else:
        app.flow(orders, name="accept", batch=8)(lambda order: None)
    with running(app, sqlite_url, broker=True) as harness:
        (lane,) = harness.worker.lanes
        if not concurrent:
            lane.pipeline.observe = lambda items: batches.append(sum(item.handled for item in items))
        app.publish_many(orders, [Order(name=str(number)) for number in range(8)])
        harness.worker.relay.step()
        for _ in range(times - 1):
            assert len(lane.consumer.receive(8)) == 8
            harness.broker.disconnect()
        harness.until_quiet()
        assert max(batches) == together
        assert harness.balances()["shop.accept"].applied == 8


@pytest.mark.parametrize("suspect", [False, True], ids=["done", "suspect"])
def test_the_other_lanes_of_a_stopped_flow_come_to_rest(app: App, sqlite_url: str, suspect: bool) -> None:
    orders, done = app.channel("orders", Order), app.channel("done", Order)
    app.flow(done, name="sink")(lambda order: None)

    @app.flow(orders, to=done, concurrency=2)
    def accept(order: Order, db: Session) -> Order:
        if order.deed:
            driver_commit(db)
        return order

    with running(app, sqlite_url, broker=True) as harness:
        one, other = (lane for lane in harness.worker.lanes if lane.flow.name == "shop.accept")
        id = harness.publish(orders, Order(name="a"))
        if suspect:
            harness.store.suspects.charge(("shop.accept", "shop", id), "gone", late=False)
        harness.worker.relay.step()
        one.step()
        assert one.expectant, "it removes what the broker has, or runs its suspect alone"
        harness.publish(orders, Order(name="b", deed="x"))
        harness.worker.relay.step()
        other.step()
        assert one.stopped
        (one.step_alone if suspect else one.step)()
        assert not one.expectant
        assert not one.pipeline.confirmed
        assert not one.in_hand
        harness.until_quiet()


def test_the_rows_of_lone_messages_are_removed_together(
    app: App, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by a transaction of its own would double what a message costs when few come."""
    orders, done = app.channel("orders", Order), app.channel("done", Order)

    @app.flow(orders, to=done)
    def accept(order: Order, db: Session) -> Order:
        db.add(Effect(name=order.name))
        return order

    @app.flow(done)
    def invoice(order: Order) -> None: ...

    commits: list[str] = []
    commit = SqlUnit.commit

    def counted(unit: SqlUnit) -> None:
        commits.append(unit.flow)
        commit(unit)

    with running(app, database_url, broker=True) as harness:
        (lane, *_), relay = harness.worker.lanes, harness.worker.relay
        app.publish_many(orders, [Order(name=str(number)) for number in range(5)])
        relay.step()
        relay.flush()
        monkeypatch.setattr(SqlUnit, "commit", counted)
        monkeypatch.setattr(lane, "_limit", 1)
        stored = lane.consumer.receive(5)
        for delivery in stored:
            lane.held = [delivery]
            while lane.step() or lane.expectant:
                pass
        assert commits == ["shop.accept"] * 5
        assert len(relay.carried) == 5
        relay.step()
        assert commits == ["shop.accept"] * 5 + [""]
        assert harness.store.ledger.pending(["shop.accept", "shop.invoice"]) == (0, 0)
        harness.until_quiet()
        once(harness, *map(str, range(5)))


def test_a_stopped_flow_leaves_its_queue_to_the_broker(sqlite_url: str, rabbitmq_url: str) -> None:
    shop = Shop(sqlite_url, rabbitmq_url)
    numbers = shop.app.channel("numbers", int)

    @shop.app.flow(numbers, concurrency=3)
    def count(number: int, db: Session) -> None:
        db.add(Effect(name=str(number)))
        if number == 0:
            driver_commit(db)

    shop.app.connect(shop.services)
    with shop.worker() as worker:
        shop.app.publish_many(numbers, range(2000))
        wait_until(lambda: "shop.count" in worker._stops)
        shop.publish("a")
        wait_until(lambda: shop.store.ledger.balances()["shop.invoice"].applied == 1)

        def waiting() -> bool:
            """Whether all that has no outcome waits at the broker, where others may have it."""
            balance = shop.store.ledger.balances()["shop.count"]
            left = balance.accepted - balance.applied - balance.dead
            return bool(shop.services.transport.depths(["shop.count"])["shop.count"] == left)

        wait_until(waiting, 20)
        steps = Counter[Lane]()
        for lane in worker.lanes:
            if lane.stopped:
                lane.step = lambda lane=lane, step=lane.step: steps.update([lane]) or step()  # type: ignore[method-assign, misc]
        time.sleep(1)
        assert max(steps.values(), default=0) < 10, "it spins"
    shop.close()


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
