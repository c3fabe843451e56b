"""RabbitMQ between the flows: what a real broker, and the network to it, do to them."""

import json
import logging
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from pika import PlainCredentials
from pika.adapters.asyncio_connection import AsyncioConnection

from flowkit import ConfigError
from flowkit.cli import status
from flowkit.message import new_id
from flowkit.operations import audit
from flowkit.ports import Consumer, Copy, Delivery
from flowkit.services import SystemClock, connect, open_store
from flowkit.settings import Settings
from flowkit.testing.conformance import message
from flowkit.transports.rabbitmq.link import cut
from flowkit.transports.rabbitmq.queues import Queues
from flowkit.transports.rabbitmq.servers import servers
from flowkit.transports.rabbitmq.transport import RabbitTransport
from tests.services.proxy import Proxy
from tests.services.rabbitmq import RabbitMQ
from tests.support import ROOT
from tests.support.broker_shop import NAMES, Shop
from tests.support.keys import ring
from tests.support.shop import Order
from tests.support.waiting import wait_until

DEADLINE_SECONDS = 90.0


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
            assert "or it is in flight" in capsys.readouterr().out
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
