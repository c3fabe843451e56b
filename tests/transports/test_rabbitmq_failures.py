"""RabbitMQ that fails: confirms, queues, alarms and connections that are lost."""

import threading
import time
from collections import Counter

import pytest

from flowkit import Message
from flowkit.engine.relay import record
from flowkit.engine.worker import Worker
from flowkit.ports import Copy, Receipt
from flowkit.telemetry.port import Telemetry
from flowkit.transports.rabbitmq import sender
from flowkit.transports.rabbitmq.queues import Queues
from tests.conftest import PROOF
from tests.services.proxy import Proxy
from tests.services.rabbitmq import RabbitMQ
from tests.support.broker_shop import NAMES, Shop
from tests.support.shop import Order
from tests.support.waiting import wait_until

PUBLISH = bytes([0, 60, 0, 40, 0, 0, 0])
"""AMQP 0-9-1: class and method of basic.publish, a reserved field, and the default exchange."""
CONFIRM = bytes([0, 60, 0, 80])
"""AMQP 0-9-1: class and method of basic.ack, which a broker sends for nothing but a confirm."""


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
