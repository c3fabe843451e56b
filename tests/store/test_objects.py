"""Objects that many messages read and write at once: no update is lost."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from decimal import Decimal
from math import inf, nan
from typing import Any, NamedTuple, cast

import pytest
from sqlalchemy import Connection
from sqlalchemy.orm import Session

from flowkit import App, FlowKitError, Objects, Outbox, RetryPolicy, UnitOfWork
from flowkit.engine.worker import Worker
from flowkit.ports import Done
from flowkit.services import connect, open_store
from flowkit.settings import Settings
from flowkit.testing import Harness
from tests.support.shop import Order, new_app, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.migrated

ORDERS = 200


@pytest.fixture
def app() -> App:
    return new_app()


@contextmanager
def worker(app: App, url: str) -> Iterator[None]:
    with closing(connect(Settings(database_url=url))) as services:
        made = Worker(app, services)
        thread = threading.Thread(target=made.run)
        thread.start()
        try:
            yield
        finally:
            made.stop()
            thread.join(60)


def counted(app: App, url: str, read: Callable[[Objects], int]) -> int:
    """What a counter says when two workers have handled so many orders, none of them failed."""
    store = open_store(Settings(database_url=url), check=False)
    store.schema.upgrade()
    with closing(store), closing(connect(Settings(database_url=url))) as services:
        app.connect(services)
        app.publish_many(app.channels["orders"], [Order(name=str(number)) for number in range(ORDERS)])
        with worker(app, url), worker(app, url):
            wait_until(lambda: store.ledger.unfinished(list(app.flows)) == 0)
        assert store.ledger.balances()["shop.count"].applied == ORDERS
        with store.unit("shop.count") as unit:
            return read(cast(Objects, unit.access().give(Objects)))


def by_get_and_put(app: App) -> None:
    @app.flow(app.channel("orders", Order))
    def count(order: Order, objects: Objects) -> None:
        objects.put("orders", (objects.get("orders") or 0) + 1)


def by_async(app: App) -> None:
    @app.flow(app.channel("orders", Order))
    async def count(order: Order, objects: Objects) -> None:
        counted = await objects.get("orders") or 0
        await asyncio.sleep(0)
        objects.put("orders", counted + 1)


def by_unit_of_work(app: App) -> None:
    @app.flow(app.channel("orders", Order))
    async def count(order: Order, objects: Objects, work: UnitOfWork) -> None:
        objects.put("orders", (await objects.get("orders") or 0) + 1)
        await work.run(lambda session, outbox: None)


@pytest.mark.parametrize("way", [by_get_and_put, by_async, by_unit_of_work])
def test_row_b2_a_counter_that_many_lanes_count_up_loses_nothing(
    app: App, way: Callable[[App], None], database_url: str
) -> None:
    way(app)
    assert counted(app, database_url, lambda objects: objects.get("orders")) == ORDERS


def test_row_b2_a_counter_that_is_deleted_at_ten_loses_nothing(app: App, database_url: str) -> None:
    @app.flow(app.channel("orders", Order))
    def count(order: Order, objects: Objects) -> None:
        if (objects.get("units") or 0) == 9:
            objects.delete("units")
            objects.put("tens", (objects.get("tens") or 0) + 1)
        else:
            objects.put("units", (objects.get("units") or 0) + 1)

    def read(objects: Objects) -> int:
        return (objects.get("tens") or 0) * 10 + (objects.get("units") or 0)

    assert counted(app, database_url, read) == ORDERS


def test_row_b2_a_conflict_that_the_handler_catches_is_none_of_its_attempts(app: App, postgresql_url: str) -> None:
    caught = []

    @app.flow(app.channel("orders", Order))
    def count(order: Order, objects: Objects) -> None:
        orders = objects.get("orders") or 0
        try:
            objects.put("orders", orders + 1)
        except Exception as error:
            caught.append(error)

    assert counted(app, postgresql_url, lambda objects: objects.get("orders")) == ORDERS
    assert caught, "no two lanes met"


def test_row_b2_messages_of_one_async_lane_that_share_an_object_soon_take_turns(app: App, database_url: str) -> None:
    runs, sent = [], app.channel("sent", Order, optional=True)

    @app.flow(app.channel("orders", Order), to=sent, concurrency=100)
    async def count(order: Order, objects: Objects, outbox: Outbox) -> None:
        runs.append(order.name)
        orders = await objects.get("orders") or 0
        await asyncio.sleep(0.001)
        objects.put("orders", orders + 1)
        outbox.send(sent, order)

    with running(app, database_url) as harness:
        app.publish_many(app.channels["orders"], [Order(name=str(number)) for number in range(ORDERS)])
        harness.until_quiet()
        with harness.store.unit("shop.count") as unit:
            assert cast(Objects, unit.access().give(Objects)).get("orders") == ORDERS
        assert sorted(order.name for order in harness.sent(sent)) == sorted(map(str, range(ORDERS)))
        assert [outcome for _, _, outcome in harness.outcomes] == [Done()] * ORDERS
        assert len(runs) < 5 * ORDERS, "they go on working beside each other for nothing"


def test_row_b2_who_only_puts_overwrites(app: App, database_url: str) -> None:
    @app.flow(app.channel("orders", Order))
    def keep(order: Order, objects: Objects) -> None:
        objects.put("last", order.name)
        objects.put("last", objects.get("last") + "!")
        objects.delete("last")
        objects.put("last", order.name, ttl="1ms")

    with running(app, database_url) as harness:
        app.publish_many(app.channels["orders"], [Order(name=str(number)) for number in range(3)])
        harness.until_quiet()
        assert [outcome for _, _, outcome in harness.outcomes] == [Done()] * 3


def kept(harness: Harness, flow: str, *keys: str) -> list[object]:
    """The objects of a flow's app."""
    with harness.store.unit(flow) as unit:
        objects = cast(Objects, unit.access().give(Objects))
        return [objects.get(key) for key in keys]


def test_what_a_handler_does_to_a_value_after_its_put_changes_nothing(app: App, database_url: str) -> None:
    @app.flow(app.channel("orders", Order))
    async def keep(order: Order, objects: Objects) -> None:
        rows = [1]
        objects.put("rows", rows)
        rows.clear()
        (await objects.get("rows")).append(2)
        assert await objects.get("rows") == [1]

    with running(app, database_url) as harness:
        harness.publish("orders", Order(name="a"))
        harness.until_quiet()
        assert kept(harness, "shop.keep", "rows") == [[1]]


def test_what_a_task_does_after_its_handler_has_returned_is_refused_by_name(app: App, database_url: str) -> None:
    told: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    @app.flow(app.channel("orders", Order))
    async def keep(order: Order, objects: Objects) -> None:
        returned = asyncio.Event()

        async def late() -> None:
            await returned.wait()
            for call in (
                lambda: objects.put("late", 1),
                lambda: objects.delete("soon"),
                lambda: objects.get("soon"),
            ):
                try:
                    result = call()
                    if asyncio.iscoroutine(result):
                        await result
                except FlowKitError as error:
                    told.append(str(error))

        async def reading() -> None:
            try:
                await objects.get("slow")
            except FlowKitError as error:
                told.append(str(error))

        objects.put("soon", 1)
        tasks.extend(map(asyncio.create_task, (late(), reading())))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(returned.set)

    with running(app, database_url) as harness:
        harness.publish("orders", Order(name="a"))
        harness.until_quiet()
        wait_until(lambda: all(task.done() for task in tasks))
        assert kept(harness, "shop.keep", "soon", "late") == [1, None]
        assert [outcome for _, _, outcome in harness.outcomes] == [Done()]
    calls = ["objects.delete()", "objects.get()", "objects.get()", "objects.put()"]
    assert sorted(one.split(" ")[0] for one in told) == calls
    assert all("after the handler of message" in one and "await in the handler the tasks" in one for one in told)


class Kept(NamedTuple):
    amount: int


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"rate": inf}, "JSON has no NaN and no infinity"),
        ([nan], "JSON has no NaN and no infinity"),
        ({1: "a"}, "1 of dict is not in what comes out, a dict; "),
        ([Decimal("1.10")], "0: Decimal comes out as str; "),
        (b"raw", "bytes comes out as str; "),
        ({"tags": {"a"}}, "tags: set comes out as list; "),
        ({"pair": (1, 2)}, "pair: tuple comes out as list; "),
        (Order(name="a"), "Order comes out as dict; "),
        (Kept(1), "Kept comes out as list; "),
        (datetime(2026, 1, 1, tzinfo=UTC), "datetime comes out as str; "),
        ([10**5000], "object bad: "),
    ],
)
@pytest.mark.parametrize("waits", [False, True], ids=["def", "async def"])
def test_an_object_that_would_not_come_out_as_it_went_in_is_refused(
    app: App, value: object, says: str, waits: bool
) -> None:
    def keep(order: Order, objects: Objects) -> None:
        objects.put("good", {"a": [1, 2.5, None, True, "ä", {}], "b": Counter("aab")})
        if order.deed:
            objects.put("bad", value)

    async def keep_async(order: Order, objects: Objects) -> None:
        keep(order, objects)

    flow = app.flow(app.channel("orders", Order), name="keep", retry=RetryPolicy(attempts=1))
    flow(keep_async if waits else keep)
    with running(app, "sqlite:///:memory:") as harness:
        harness.publish("orders", Order(name="a", deed="bad"))
        harness.until_quiet()
        assert kept(harness, "shop.keep", "good", "bad") == [None, None]
        [letter] = harness.dead()
        assert "TypeError: object bad: " in letter.stack
        assert says in letter.stack
        harness.publish("orders", Order(name="b"))
        harness.until_quiet()
        assert kept(harness, "shop.keep", "good") == [{"a": [1, 2.5, None, True, "ä", {}], "b": {"a": 2, "b": 1}}]


@contextmanager
def change(harness: Harness) -> Iterator[Any]:
    """The objects of the app, which are committed."""
    with harness.store.unit("shop.other") as unit:
        with unit.access() as access:
            yield access.give(Objects)
        unit.commit()


class Undone(Exception):
    """Rolls a savepoint back."""


@pytest.mark.parametrize("isolate", ["batch", "savepoint"])
@pytest.mark.parametrize("kind", [Session, Connection])
@pytest.mark.parametrize("known", [True, False], ids=["read", "unread"])
def test_what_is_put_inside_of_a_savepoint_is_undone_with_it(
    app: App, database_url: str, kind: type, isolate: Any, known: bool
) -> None:
    seen: list[object] = []

    def keep(order: Order, db: Any, objects: Objects) -> None:
        if known:
            seen.extend(objects.get(key) for key in ("a", "b", "c"))
        objects.put("a", 1)
        with suppress(Undone), db.begin_nested():
            objects.delete("old")
            assert objects.get("old") is None
            objects.put("a", 2)
            objects.put("b", 2)
            with db.begin_nested():
                objects.put("c", 2)
            with suppress(Undone), db.begin_nested():
                objects.delete("c")
                objects.get("c")
                raise Undone
            seen.append([objects.get(key) for key in ("a", "b", "c")])
            raise Undone
        seen.append([objects.get(key) for key in ("a", "b", "c")])
        objects.put("old", "new")
        objects.put("a", 3)
        with db.begin_nested():
            objects.delete("a")
            objects.put("b", 3)
        objects.put("a", 4)

    keep.__annotations__["db"] = kind
    app.flow(app.channel("orders", Order), retry=RetryPolicy(attempts=1), isolate=isolate)(keep)
    with running(app, database_url) as harness:
        with change(harness) as objects:
            objects.put("old", 1)
        harness.publish("orders", Order(name="a"))
        harness.until_quiet()
        assert harness.dead() == []
        assert seen == [None] * 3 * known + [[2, 2, 2], [1, None, None]]
        assert kept(harness, "shop.keep", "a", "b", "c", "old") == [4, 3, None, "new"]


def test_an_update_is_not_lost_to_a_savepoint_that_is_rolled_back(app: App, postgresql_url: str) -> None:
    others: list[Callable[[], None]] = []

    @app.flow(app.channel("orders", Order))
    def count(order: Order, db: Connection, objects: Objects) -> None:
        counted = objects.get("orders") or 0
        with suppress(Undone), db.begin_nested():
            objects.put("orders", counted + 1)
            raise Undone
        while others:
            others.pop()()
        objects.put("orders", counted + 1)

    def other(harness: Harness) -> None:
        with change(harness) as objects:
            objects.put("orders", (objects.get("orders") or 0) + 1)

    with running(app, postgresql_url) as harness:
        others.append(lambda: other(harness))
        harness.publish("orders", Order(name="a"))
        harness.until_quiet()
        assert kept(harness, "shop.count", "orders") == [2]
