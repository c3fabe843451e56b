"""RabbitMQ between the flows: what a real broker, and the network to it, do to them."""

import asyncio
import json
import logging
import os
import random
import selectors
import subprocess
import sys
import threading
import time
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pika import PlainCredentials
from pika.adapters.asyncio_connection import AsyncioConnection
from sqlalchemy.orm import Session

from flowkit import ConfigError, Message
from flowkit.cli import status
from flowkit.engine.relay import record
from flowkit.engine.worker import Worker
from flowkit.message import new_id
from flowkit.operations import audit
from flowkit.ports import Consumer, Copy, Delivery, Receipt
from flowkit.services import Services, SystemClock, connect, open_store
from flowkit.settings import Settings
from flowkit.telemetry import Telemetry
from flowkit.testing.conformance import message
from flowkit.transports.rabbitmq import sender
from flowkit.transports.rabbitmq.link import FIRST_WAIT_SECONDS, MOST_WAIT_SECONDS, Link, cut
from flowkit.transports.rabbitmq.queues import Queues
from flowkit.transports.rabbitmq.servers import servers
from flowkit.transports.rabbitmq.transport import RabbitTransport
from tests.conftest import PROOF
from tests.keys import ring
from tests.services.proxy import Proxy
from tests.services.rabbitmq import RabbitMQ
from tests.shop import Base, Effect, Order, effects, new_app

ROOT = Path(__file__).parent.parent
DEADLINE_SECONDS = 90.0


def wait_until(condition: Callable[[], bool], seconds: float = DEADLINE_SECONDS) -> None:
    """Wait for a condition, with a deadline."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)


class Shop:
    """An app with two flows, its store, and as many workers as are started."""

    def __init__(self, database_url: str, broker_url: str, drain_url: str = "") -> None:
        store = open_store(Settings(database_url=database_url), check=False)
        store.schema.upgrade()
        Base.metadata.create_all(store.dialect.engine)
        store.close()
        self.app = new_app()
        self.orders = self.app.channel("orders", Order)
        self.accepted = self.app.channel("accepted", Order)
        self.app.flow(self.orders, to=self.accepted, name="accept")(self.accept)
        self.app.flow(self.accepted, name="invoice")(self.invoice)
        self.settings = Settings(database_url=database_url, broker_url=broker_url, drain_url=drain_url, lease=5)
        self.services = self.connect()
        self.store: Any = self.services.store
        self.app.connect(self.services)
        self.deed: Callable[[Order], None] = lambda order: None

    def connect(self) -> Services:
        return connect(self.settings)

    def accept(self, order: Order, db: Session) -> Order:
        self.deed(order)
        db.add(Effect(name=f"accept {order.name}"))
        return order

    def invoice(self, order: Order, db: Session) -> None:
        db.add(Effect(name=f"invoice {order.name}"))

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        """A worker on services of its own, as in a process of its own."""
        services = self.connect()
        worker = Worker(self.app, services)
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            yield worker
        finally:
            worker.stop()
            thread.join(60)
            services.close()

    def publish(self, *names: str) -> None:
        self.app.publish_many(self.orders, [Order(name=name) for name in names])

    def ended(self) -> bool:
        """Whether every message is at its end."""
        return bool(self.store.ledger.unfinished(list(self.app.flows)) == 0)

    def check(self, *names: str) -> None:
        """Each of these took effect once, everything is accounted for, and nothing is left anywhere."""
        wait_until(self.ended)
        with Session(self.store.dialect.engine) as session:
            assert effects(session) == {f"{flow} {name}": 1 for flow in ("accept", "invoice") for name in names}
        wait_until(lambda: sum(self.store.ledger.pending(list(self.app.flows))) == 0)
        assert all(one.balanced for one in self.store.ledger.balances().values())
        wait_until(lambda: not any(self.services.transport.depths(list(self.app.flows)).values()))

    def close(self) -> None:
        self.app.close()  # those of the last worker, which the app was connected to
        self.services.close()


@pytest.fixture
def proxy(rabbitmq_node: RabbitMQ, rabbitmq_url: str) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", rabbitmq_node.port) as made:
        yield made


@pytest.fixture
def shop(sqlite_url: str, rabbitmq_node: RabbitMQ, proxy: Proxy) -> Iterator[Shop]:
    made = Shop(sqlite_url, rabbitmq_node.url(proxy.port))
    yield made
    made.close()


PUBLISH = bytes([0, 60, 0, 40, 0, 0, 0])
"""AMQP 0-9-1: class and method of basic.publish, a reserved field, and the default exchange."""
CONFIRM = bytes([0, 60, 0, 80])
"""AMQP 0-9-1: class and method of basic.ack, which a broker sends for nothing but a confirm."""
NAMES = [str(number) for number in range(500)]


def test_flows_run_unchanged(shop: Shop) -> None:
    with shop.worker(), shop.worker():
        shop.publish(*NAMES)
        shop.check(*NAMES)


def test_a_channel_that_believes_in_a_dead_leader_is_replaced(shop: Shop, rabbitmq_node: RabbitMQ) -> None:
    """RabbitMQ asks once per channel who leads a queue: told of a node that has just died, it refuses for good."""
    name = Queues(shop.store.identity()).name("shop.accept")

    def lead(node: str) -> None:
        """What the broker believes of who leads the queue; its consumers know better."""
        set_pid = f"fun(Q) -> amqqueue:set_pid(Q, {{element(1, amqqueue:get_pid(Q)), {node}}}) end"
        update = f'rabbit_amqqueue:update(rabbit_misc:r(<<"/">>, queue, <<"{name}">>), {set_pid})'
        rabbitmq_node.evaluate(f"rabbit_misc:execute_mnesia_transaction(fun() -> {update} end).")

    def refused() -> bool:
        with shop.store.unit("") as unit:
            return "refused" in str(unit.read("SELECT parked FROM flowkit_messages"))

    with shop.worker():
        lead("'gone@127.0.0.1'")
        shop.publish("first")
        wait_until(refused)
        lead("node()")
        shop.publish("second")
        shop.check("first", "second")


def test_a_batch_is_written_at_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is three frames, and pika writes each by itself."""
    written: list[int] = []
    write = AsyncioConnection._adapter_emit_data  # type: ignore[attr-defined]

    def noting(self: AsyncioConnection, data: bytes) -> None:
        written.append(len(data))
        write(self, data)

    monkeypatch.setattr(AsyncioConnection, "_adapter_emit_data", noting)
    shop.services.transport.declare(["shop.accept"])
    written.clear()
    copies = [Copy(str(number), message(), "shop.accept") for number in range(100)]
    assert all(receipt.confirmed for receipt in shop.services.transport.send(copies))
    assert len(written) < 10 and sum(written) > 100 * 250


def test_every_lane_hears_of_what_it_holds(sqlite_url: str, rabbitmq_url: str) -> None:
    """Each lane has a channel of its own: what is on it can be received by that lane only."""
    shop = Shop(sqlite_url, rabbitmq_url)
    seen: set[str] = set()
    numbers = shop.app.channel("numbers", int)
    shop.app.flow(numbers, name="count", concurrency=3)(lambda number: seen.add(threading.current_thread().name))
    shop.app.connect(shop.services)
    with shop.worker() as worker:
        for number in range(12):  # one at a time: the broker gives them to the lanes in turn
            shop.app.publish(numbers, number)
            wait_until(shop.ended, 10)
        assert sum(lane.flow.name == "shop.count" for lane in worker.lanes) == 3
    assert seen
    shop.close()


def test_row_4_the_brokers_timeout_of_consumers_ends_no_consuming(
    shop: Shop, rabbitmq_node: RabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker closes a channel whose acknowledgement is late: what is on it runs again, and the inbox decides."""
    rabbitmq_node.ctl(
        "eval", "[application:set_env(rabbit, K, 500) || K <- [consumer_timeout, channel_tick_interval]]."
    )
    late = threading.Event()
    shop.deed = lambda order: wait_until(late.is_set) if order.name == "slow" else None
    try:
        with caplog.at_level(logging.WARNING), shop.worker() as worker:
            shop.publish("slow")
            wait_until(lambda: "PRECONDITION_FAILED - delivery acknowledgement on channel" in caplog.text)
            late.set()
            shop.check("slow")
            shop.publish("next")
            shop.check("slow", "next")
            assert not worker.stopping.is_set()
    finally:
        rabbitmq_node.ctl(
            "eval",
            "application:set_env(rabbit, consumer_timeout, 1800000), "
            "application:set_env(rabbit, channel_tick_interval, 60000).",
        )


def test_row_9_a_long_handler_does_not_cost_the_connection(
    sqlite_url: str, rabbitmq_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop(sqlite_url, f"{rabbitmq_url}?heartbeat=1")
    runs: list[str] = []

    def long(order: Order) -> None:
        runs.append(order.name)
        time.sleep(4)

    shop.deed = long
    with caplog.at_level(logging.WARNING), shop.worker():
        shop.publish("a")
        shop.check("a")
    shop.close()
    assert runs == ["a"]
    assert "no connection" not in caplog.text


def test_row_4_what_is_settled_as_its_connection_ends_is_left_to_the_broker(
    rabbitmq_node: RabbitMQ, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """A lane acknowledges and gives back in the very turn in which the connection is lost, before anybody was told."""
    transport = RabbitTransport(rabbitmq_node.url(proxy.port), new_id(), SystemClock(), random.random, keys=ring)
    with closing(transport):
        transport.declare(["shop.accept"])
        consumer = transport.consumer("shop.accept", "worker", 10)
        wait_until(lambda: transport.ready)
        transport.send([Copy(new_id(), message(), "shop.accept") for number in range(2)])
        first, second = received(consumer, 2)
        assert transport._io is not None

        def end(connection: AsyncioConnection) -> None:
            cut(connection)
            consumer.settle([first])
            consumer.release([second])

        transport._io.loop.call(end, transport._io.consuming.connection)
        again = received(consumer, 2)
        assert {one.message.id for one in again} == {first.message.id, second.message.id}
        consumer.settle(again)
    assert "Exception in callback" not in caplog.text


def received(consumer: Consumer, count: int) -> list[Delivery]:
    """`count` deliveries of a source."""
    found: list[Delivery] = []
    wait_until(lambda: found.extend(consumer.receive(count - len(found))) or len(found) == count)  # type: ignore[func-returns-value]
    return found


def test_row_12_lost_confirms_are_sent_again_and_applied_once(
    shop: Shop, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker has confirmed a copy when the connection is cut, and the confirm was not heard."""
    outcomes: Counter[str] = Counter()
    monkeypatch.setattr(Telemetry, "ended", lambda _, flow, ended: outcomes.update(type(one).__name__ for one in ended))
    queue = Queues(shop.store.identity()).name("shop.invoice").encode()
    names = ["first"]
    with shop.worker():
        shop.publish("first")
        shop.check("first")
        for number in range(3):
            twice = outcomes["Duplicate"]
            proxy.cut_when(PUBLISH + bytes([len(queue)]) + queue, forward=True, answer=CONFIRM)
            more = [f"{number}-{name}" for name in NAMES[:50]]
            shop.publish(*more)
            wait_until(lambda: proxy.cuts > number)  # noqa: B023
            names += more
            shop.check(*names)
            wait_until(lambda: outcomes["Duplicate"] > twice)  # noqa: B023


def test_row_14_and_58_a_copy_without_its_queue_is_parked_and_sent_when_it_is_back(
    shop: Shop, rabbitmq_node: RabbitMQ
) -> None:
    with shop.worker():
        shop.publish("a")
        shop.check("a")
    name = Queues(shop.store.identity()).name("shop.invoice")
    rabbitmq_node.ctl("delete_queue", name)
    services = shop.connect()
    worker = Worker(shop.app, services, shop.app.select(["accept"]))
    thread = threading.Thread(target=worker.run)
    thread.start()
    shop.publish("b")
    wait_until(lambda: shop.store.ledger.backlog().get("shop.invoice", (0, 0, 0, 0))[3] == 1)
    worker.stop()
    thread.join(60)
    services.close()
    assert not shop.ended()
    with shop.worker():
        shop.check("a", "b")


def test_row_15_a_bad_queue_stops_its_own_flow_only(
    shop: Shop, rabbitmq_node: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowkit.engine.relay.PARK_SECONDS", 1.0)
    with shop.worker():
        shop.publish("a")
        shop.check("a")
        rabbitmq_node.ctl("delete_queue", Queues(shop.store.identity()).name("shop.invoice"))
        shop.publish("b")
        wait_until(lambda: shop.store.ledger.balances()["shop.accept"].applied == 2)
        shop.check("a", "b")


def test_row_15_a_queue_that_does_not_answer_stops_its_own_flow_only(
    shop: Shop, rabbitmq_node: RabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    """As one whose leader is gone, until there is another one; and then it has one consumer again, not two."""
    other = shop.connect()
    queue = Queues(shop.store.identity()).name("shop.invoice")
    other.transport.declare(list(shop.app.flows))
    leader = f"whereis('%2F_{queue}')"
    rabbitmq_node.evaluate(f"sys:suspend({leader}).")
    with shop.worker() as worker:
        wait_until(lambda: "shop.invoice: its queue cannot be consumed: no answer in time" in caplog.text)
        shop.publish("a")
        wait_until(lambda: shop.store.ledger.balances()["shop.accept"].applied == 1)
        rabbitmq_node.evaluate(f"sys:resume({leader}).")
        shop.check("a")
        lanes = sum(lane.flow.name == "shop.invoice" for lane in worker.lanes)
        listed = ("list_queues", "--no-table-headers", "name", "consumers")
        wait_until(lambda: f"{queue}\t{lanes}" in rabbitmq_node.ctl(*listed).splitlines())
    other.close()


ALARM_SECONDS = 30 if PROOF else 1


def test_row_17_an_alarm_fills_the_outbox_which_drains_afterwards(shop: Shop, rabbitmq_node: RabbitMQ) -> None:
    with shop.worker() as worker:
        shop.publish("first")
        shop.check("first")
        rabbitmq_node.ctl("set_vm_memory_high_watermark", "absolute", "1")
        later: list[str] = []
        try:
            shop.publish(*NAMES)
            wait_until(lambda: not worker.services.transport.ready)
            for second in range(ALARM_SECONDS):
                names = [f"{second}-{name}" for name in NAMES[:50]]
                shop.publish(*names)
                later += names
                time.sleep(1)
            assert shop.store.ledger.pending(["shop.accept", "shop.invoice"]).now >= len(later)
        finally:
            rabbitmq_node.ctl("set_vm_memory_high_watermark", "0.4")
        shop.check("first", *NAMES, *later)


@pytest.mark.timeout(1200 if PROOF else 120)
def test_row_18_a_broker_that_restarts_under_load_loses_nothing(shop: Shop, rabbitmq_node: RabbitMQ) -> None:
    sent: list[str] = []
    with shop.worker() as worker:
        for number in range(20 if PROOF else 2):
            shop.publish(*(f"{number}-{name}" for name in NAMES))
            sent += [f"{number}-{name}" for name in NAMES]
            rabbitmq_node.kill()
            wait_until(lambda: worker.state == "unready")
            rabbitmq_node.start()
            up = time.monotonic()
            wait_until(lambda: worker.state == "ready")
            print(f"consuming again {time.monotonic() - up:.2f} s after the broker is up")
            assert time.monotonic() - up < 3 * 5, "three times the bound"
        shop.check(*sent)


def test_row_21_dead_letters_are_rows_whatever_becomes_of_the_broker(shop: Shop, rabbitmq_node: RabbitMQ) -> None:
    def fail(order: Order) -> None:
        raise ValueError("poison")

    shop.deed = fail
    shop.app.flows["shop.accept"].retry.attempts = 1
    with shop.worker():
        shop.publish(*(str(number) for number in range(1000)))
        wait_until(lambda: shop.store.ledger.balances()["shop.accept"].dead > 100)
        rabbitmq_node.restart()
        wait_until(shop.ended)
    assert len(shop.store.dead_letters.select(limit=2000)) == 1000


def test_row_23_a_black_hole_is_noticed_and_nothing_is_lost(
    shop: Shop, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowkit.transports.rabbitmq.sender.CONFIRM_SECONDS", 1.0)
    with shop.worker():
        shop.publish("first")
        shop.check("first")
        proxy.blackhole()
        shop.publish(*NAMES)
        before = len(proxy.arrivals)
        wait_until(lambda: len(proxy.arrivals) > before)
        proxy.forward()
        shop.check("first", *NAMES)


def test_what_was_not_confirmed_in_time_is_sent_again_as_soon_as_it_can_be(
    shop: Shop, rabbitmq_node: RabbitMQ, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not when its lease is over: the other nodes of a cluster take it long before that."""
    monkeypatch.setattr(sender, "CONFIRM_SECONDS", 1)
    leader = f"whereis('%2F_{Queues(shop.store.identity()).name('shop.accept')}')"
    with shop.worker():
        shop.publish("first")
        shop.check("first")
        rabbitmq_node.evaluate(f"sys:suspend({leader}).")
        shop.publish("second")
        wait_until(lambda: "a publish was not confirmed within 1s" in caplog.text)
        rabbitmq_node.evaluate(f"exit({leader}, kill).")  # with all that it was sent
        killed = time.monotonic()
        shop.check("first", "second")
        assert time.monotonic() - killed < shop.services.transport.lease / 2


def test_what_is_refused_is_tried_again_soon_and_then_less_often(shop: Shop) -> None:
    """A queue without a leader refuses for a moment, one that is full for long."""
    parked: list[float] = []
    shop.store.queue.park = lambda rows, seconds: parked.append(seconds)
    message = Message("1", "test", "orders", b"")
    for tries in (1, 2, 3, 4, 5, 1000):
        record(shop.store, [Receipt(Copy("row", message, "shop.accept", 0, 0), False, "refused")], {"row": tries})
    assert parked == [2, 4, 8, 16, 30, 30]


def test_row_24_what_the_broker_finds_too_large_is_parked_and_hinders_nothing(
    sqlite_url: str, rabbitmq_node: RabbitMQ, rabbitmq_url: str
) -> None:
    limit = rabbitmq_node.evaluate("application:get_env(rabbit, max_message_size).")
    rabbitmq_node.evaluate("application:set_env(rabbit, max_message_size, 1000).")
    try:
        shop = Shop(sqlite_url, rabbitmq_url)
        with shop.worker():
            shop.publish("a", "large" * 400, "b")
            wait_until(lambda: shop.store.ledger.backlog()["shop.accept"].parked == 1)
            shop.publish("c")
            wait_until(lambda: shop.store.ledger.unfinished(list(shop.app.flows)) == 1)
            with shop.store.unit("") as unit:
                (reason,) = {
                    reason for (reason,) in unit.read("SELECT parked FROM flowkit_messages WHERE parked IS NOT NULL")
                }
            assert reason == "RabbitMQ takes 1,000 bytes at most (max_message_size)"
    finally:
        rabbitmq_node.evaluate(f"{{ok, N}} = {limit.strip()}, application:set_env(rabbit, max_message_size, N).")
    with shop.worker():
        shop.check("a", "large" * 400, "b", "c")
    shop.close()


def test_row_25_clients_that_were_cut_off_together_do_not_come_together(
    rabbitmq_node: RabbitMQ, rabbitmq_url: str, sqlite_url: str
) -> None:
    """Twenty clients, and how their attempts spread; the waits are a random part of a growing bound."""
    with Proxy("127.0.0.1", rabbitmq_node.port) as proxy:
        store = open_store(Settings(database_url=sqlite_url), check=False)
        shop = Shop(sqlite_url, rabbitmq_node.url(proxy.port))
        clients = [shop.connect() for _ in range(20)]
        for client in clients:
            client.transport.declare(["shop.accept"])
        known = len(proxy.arrivals)
        proxy.cut()
        wait_until(lambda: all(client.transport.ready for client in clients) and len(proxy.arrivals) >= known + 40)
        times = sorted(proxy.arrivals[known : known + 40])
        assert times[-1] - times[0] > 0.1, "all came at once"
        for client in clients:
            client.close()
        shop.close()
        store.close()


CLIENTS = 200
WINDOW_SECONDS = 0.1


class Skipping(selectors.DefaultSelector):
    """Waits for nothing: the time of a wait passes at once."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        self.now += 0 if ready else timeout or 0
        return ready


class Moment(asyncio.SelectorEventLoop):
    """An event loop whose time is virtual."""

    def __init__(self) -> None:
        self._skipping = Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now


async def herd(monkeypatch: pytest.MonkeyPatch, away: float, jitter: Callable[[], float]) -> list[float]:
    """When clients that are cut off together try to connect, to a broker that comes back after some time."""
    loop = asyncio.get_running_loop()
    arrivals: list[float] = []
    back = 0.0

    class Connection:
        """What is made for each try."""

        def __init__(self, server: object, *, custom_ioloop: object, **calls: Callable[..., None]) -> None:
            arrivals.append(loop.time())
            self.is_open = loop.time() >= back
            answer = "on_open_callback" if self.is_open else "on_open_error_callback"
            loop.call_soon(calls[answer], self, ConnectionRefusedError())

        def close(self) -> None:
            self.is_open = False

        @property
        def is_closed(self) -> bool:
            return not self.is_open

    async def opened(connection: object) -> None: ...

    monkeypatch.setattr("flowkit.transports.rabbitmq.link.Connection", Connection)
    links = [Link(servers("amqp://127.0.0.1"), jitter, opened, lambda: None) for _ in range(CLIENTS)]
    assert all([await link.ready(1) for link in links])
    arrivals.clear()
    began = loop.time()
    back = began + away
    for link in links:
        link.abandon(link.connection, "cut")
    while len(arrivals) < CLIENTS or not all(link.up.is_set() for link in links):
        await asyncio.sleep(0.01)
    for link in links:
        await link.close()
    return [time - began for time in arrivals]


def busiest(arrivals: Sequence[float]) -> int:
    """The most that come within a window."""
    return max(bisect(arrivals, time + WINDOW_SECONDS) - number for number, time in enumerate(arrivals))


@pytest.mark.parametrize("away", [0, 60])
def test_row_25_two_hundred_clients_stay_below_a_rate(monkeypatch: pytest.MonkeyPatch, away: float) -> None:
    """Each waits for a random part of a bound, the first time and when the broker has been away for a while."""
    with asyncio.Runner(loop_factory=Moment) as runner:
        arrivals = runner.run(herd(monkeypatch, away, random.Random(25).random))
    spread = MOST_WAIT_SECONDS / 2 if away else FIRST_WAIT_SECONDS * 2
    most = busiest([time for time in arrivals if time >= away / 2])
    print(f"{most} of {CLIENTS} clients within {WINDOW_SECONDS} s, {len(arrivals)} tries in all")
    assert most < 2.5 * CLIENTS * WINDOW_SECONDS / spread


def test_an_audit_counts_again_while_something_is_on_its_way(
    postgresql_url: str, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On PostgreSQL: a handler in SQLite's transaction would keep the relay from removing the row that it sent."""
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", postgresql_url)
    monkeypatch.setenv("FLOWKIT_BROKER_URL", rabbitmq_url)
    begun, go_on = threading.Event(), threading.Event()

    def hold(order: Order) -> None:
        begun.set()
        go_on.wait(DEADLINE_SECONDS)

    with closing(Shop(postgresql_url, rabbitmq_url)) as shop:

        def end(seconds: float) -> None:
            go_on.set()
            wait_until(lambda: shop.ended() and sum(shop.store.ledger.pending(list(shop.app.flows))) == 0)

        shop.deed = hold
        with shop.worker():
            shop.publish("a")
            assert begun.wait(DEADLINE_SECONDS)
            wait_until(lambda: sum(shop.store.ledger.pending(list(shop.app.flows))) == 0)
            assert status.audit(json=False) == 1
            assert "or workers have it in hand" in capsys.readouterr().out
            monkeypatch.setattr(audit, "time", SimpleNamespace(sleep=end))
            assert status.audit(json=False) == 0
        shop.check("a")


def test_row_69_rows_left_on_either_side_of_a_switch_are_drained(sqlite_url: str, rabbitmq_url: str) -> None:
    direct, broker = Shop(sqlite_url, ""), Shop(sqlite_url, rabbitmq_url)
    direct.publish("a", "b")
    with broker.worker():
        broker.publish("c")
        broker.check("a", "b", "c")
    broker.publish("d", "e")
    with direct.worker():
        wait_until(direct.ended)
    direct.check("a", "b", "c", "d", "e")
    direct.close()
    broker.close()


def test_row_69_the_broker_setting_changes_under_load(sqlite_url: str, rabbitmq_url: str) -> None:
    """Rows, then the broker, then the database that empties the broker, while messages come in all the time."""
    stages = [
        Shop(sqlite_url, ""),
        Shop(sqlite_url, rabbitmq_url),
        Shop(sqlite_url, "", drain_url=rabbitmq_url),
    ]
    names = [str(number) for number in range(3000)]
    left: list[int] = []
    for shop, part in zip(stages, (names[:1000], names[1000:2000], names[2000:]), strict=True):
        shop.deed = lambda order: time.sleep(0.001)
        with shop.worker():
            for first in range(0, 1000, 100):
                shop.publish(*part[first : first + 100])
            left.append(shop.store.ledger.unfinished(list(shop.app.flows)))
            if shop is stages[1]:
                wait_until(lambda: sum(stages[1].services.transport.depths(["shop.accept"]).values()) > 0)
    assert all(left), "each switch was made while messages waited"
    with stages[2].worker():
        stages[2].check(*names)
    for shop in stages:
        shop.close()


def test_two_brokers_at_once_are_refused(sqlite_url: str) -> None:
    url = "amqp://u:hidden-secret@127.0.0.1"
    with pytest.raises(ConfigError, match="FLOWKIT_BROKER_URL and FLOWKIT_DRAIN_URL are both set"):
        connect(Settings(database_url=sqlite_url, broker_url=url, drain_url=url), check=False)
    with pytest.raises(ConfigError, match="FLOWKIT_DRAIN_URL is redis://u:") as refused:
        connect(Settings(database_url=sqlite_url, drain_url="redis://u:hidden-secret@127.0.0.1"), check=False)
    assert "hidden-secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("amqp://u:hidden-secret@[::1:5672", "cannot be read"),
        ("amqp://u:hidden-secret@host:99999", "cannot be read"),
        ("amqp://guest:hidden-secret@broker.example", "guest is for loopback only"),
        ("amqp://broker.example", "guest is for loopback only"),
        ("amqps://u:hidden-secret@host?cacertfile=/no/such/file", "certificate or key cannot be read"),
        ("amqps://u:hidden-secret@host?verify=maybe", "verify_peer or verify_none"),
        ("amqp://u:hidden-secret@host?heartbeat=0", "heartbeat is a number"),
        ("amqp://u:hidden-secret@host?color=red", "parameter color is unknown"),
    ],
)
def test_a_wrong_url_is_named_without_its_password(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        servers(url)
    assert "FLOWKIT_BROKER_URL" in str(refused.value)
    assert "hidden-secret" not in str(refused.value)


def test_several_hosts_share_what_a_url_says() -> None:
    first, second = servers("amqp://u:p%40ss@one:1234,two/a%2Fb?heartbeat=7")
    assert (first.host, first.port, second.host, second.port) == ("one", 1234, "two", 5672)
    assert first.virtual_host == second.virtual_host == "a/b"
    assert first.heartbeat == 7
    assert isinstance(first.credentials, PlainCredentials)
    assert (first.credentials.username, first.credentials.password) == ("u", "p@ss")


def test_the_command_line_runs_until_idle_and_the_ledger_balances(
    tmp_path: Path, rabbitmq_node: RabbitMQ, rabbitmq_url: str
) -> None:
    (tmp_path / "app.py").write_text(
        "from flowkit import App\n"
        "app = App('cli', retention='30d')\n"
        "numbers = app.channel('numbers', int)\n"
        "doubled = app.channel('doubled', int)\n"
        "@app.flow(numbers, to=doubled)\n"
        "def double(number: int) -> int:\n    return number * 2\n"
        "@app.flow(doubled)\n"
        "def end(number: int) -> None: ...\n"
    )
    (tmp_path / "numbers.jsonl").write_text("".join(f"{number}\n" for number in range(1000)))

    def flowkit(*arguments: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "flowkit", *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "FLOWKIT_BROKER_URL": rabbitmq_url,
                "FLOWKIT_DATABASE_URL": "sqlite:///app.db",
            },
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        return ran.stdout

    flowkit("send", "app.py", "numbers", "@numbers.jsonl")
    flowkit("run", "app.py", "--workers", "2", "--until-idle")
    ledger = json.loads(flowkit("audit", "--json"))
    assert ledger["balanced"]
    with closing(open_store(Settings(database_url=f"sqlite:///{tmp_path / 'app.db'}"))) as store:
        assert store.keyring.hold() == 30 * 86_400, "workers note how long messages of their app may wait"
    assert (ledger["accepted"], ledger["applied"], ledger["pending"]) == (2000, 2000, 0)
    assert json.loads(flowkit("status", "--json"))["flows"]["cli.double"]["queued"] == 0
