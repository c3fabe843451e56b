"""Lanes: what they acknowledge, and how a stopped flow leaves the others alone."""

import asyncio
import time
from collections import Counter
from contextlib import suppress
from unittest.mock import patch

import pytest
from sqlalchemy.orm import Session

from flowkit import App, Outbox, StoreUnavailable, UnitOfWork
from flowkit.engine.async_lane import AsyncLane
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
from tests.support.breaches import driver_commit
from tests.support.broker_shop import Shop
from tests.support.shop import Effect, Order, once, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.migrated


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
        wait_until(lambda: bool(lane._tasks.ended))
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
        assert not one.in_flight
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
