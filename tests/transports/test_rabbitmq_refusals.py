"""Messages that RabbitMQ would refuse, and a broker that refuses workers."""

import os
import random
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowkit import App, ConfigError, Message, TooLarge
from flowkit.errors import Undecodable
from flowkit.message import MAX_HEADERS, MAX_NAME, check_headers, new_id
from flowkit.ports import Copy
from flowkit.services import SystemClock, connect, open_store
from flowkit.settings import Settings
from flowkit.transports.rabbitmq.transport import RabbitTransport
from tests.services.rabbitmq import RabbitMQ
from tests.support import ROOT
from tests.support.hostile_broker import GOOD, shop, start
from tests.support.keys import ring
from tests.support.shop import Order
from tests.support.waiting import wait_until

# ------------------------------------------------------------ sending


@pytest.mark.parametrize("name", ["flowkit", "CC", "bcc", "x-delivery-count", "x-death", "ce-id", "cloudEvents:id"])
def test_a_header_that_brokers_read_is_refused_at_the_send(sqlite_url: str, name: str) -> None:
    app = shop()
    app.connect(connect(Settings(database_url=sqlite_url)))
    with closing(app), pytest.raises(Undecodable, match=f"header {name} is reserved"):
        app.publish("orders", Order(name="a"), headers={name: "1"})


def test_headers_over_the_limit_are_refused_at_the_send(sqlite_url: str) -> None:
    """More than the broker takes in one frame would end the connection of all flows, at each try."""
    app = shop()
    app.connect(connect(Settings(database_url=sqlite_url)))
    with closing(app), pytest.raises(Undecodable, match="headers have 100,012 bytes; they may have 65,536"):
        app.publish("orders", Order(name="a"), headers={"long": "x" * 100_000})


def copies(*flows: str) -> list[Copy]:
    return [Copy(new_id(), Message(new_id(), "shop", "orders", GOOD), flow) for flow in flows]


def test_the_largest_envelope_fits_in_a_frame(rabbitmq_url: str) -> None:
    """Each name has 255 characters of four bytes, and the headers are as large as they may be."""
    name = "\U0001f600" * MAX_NAME
    headers = {f"{number:04}": "x" for number in range(MAX_HEADERS // 13)}
    largest = Message(name, name, name, GOOD, name, name, 1.5, name, name, check_headers(headers))
    transport = RabbitTransport(rabbitmq_url, new_id(), SystemClock(), random.random, keys=ring)
    with closing(transport):
        transport.declare(["shop.accept"])
        transport.send(copies("exchange:largest"))  # declares it
        for flow in ("shop.accept", "exchange:largest"):
            (receipt,) = transport.send([Copy(new_id(), largest, flow)])
            assert receipt.confirmed or "RabbitMQ has no queue at exchange" in receipt.reason


def test_a_publish_that_is_not_allowed_closes_the_channel_once(
    rabbitmq_node: RabbitMQ, rabbitmq_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowkit.transports.rabbitmq.sender.NO_ACCESS_SECONDS", 1.0)
    rabbitmq_node.ctl("add_user", "limited", "secret")
    rabbitmq_node.ctl("set_permissions", "limited", ".*", "^(amq.default|flowkit.*)$", ".*")
    url = rabbitmq_node.url(user="limited", password="secret")
    transport = RabbitTransport(url, new_id(), SystemClock(), random.random, keys=ring)
    with closing(transport):
        transport.declare(["shop.accept"])

        def reasons(*flows: str) -> list[str]:
            wait_until(lambda: transport.ready)
            return [receipt.reason for receipt in transport.send(copies(*flows)) if not receipt.confirmed]

        assert reasons("exchange:forbidden") == [""]
        (reason,) = reasons("shop.accept", "exchange:forbidden", "shop.accept")
        assert "access to exchange 'forbidden' in vhost '/' refused" in reason
        assert caplog.text.count("RabbitMQ closed the publishing channel") == 1
        rabbitmq_node.ctl("set_permissions", "limited", ".*", ".*", ".*")
        wait_until(lambda: "has no queue at exchange forbidden" in reasons("exchange:forbidden")[0])
    rabbitmq_node.ctl("delete_user", "limited")


def test_threat_tenants_without_the_right_to_make_a_queue_are_told_so(sqlite_url: str, rabbitmq_node: RabbitMQ) -> None:
    rabbitmq_node.start()
    rabbitmq_node.ctl("add_user", "reader", "secret")
    rabbitmq_node.ctl("set_permissions", "reader", "^$", ".*", ".*")
    with pytest.raises(ConfigError, match=r"access to queue .* refused.*; check user, .* permissions"):
        start(shop(), sqlite_url, rabbitmq_node.url(user="reader", password="secret"))
    rabbitmq_node.ctl("delete_user", "reader")


@pytest.mark.processes
def test_a_worker_that_the_broker_refuses_for_a_while_is_back_afterwards(
    tmp_path: Path, sqlite_url: str, rabbitmq_node: RabbitMQ
) -> None:
    """Its user loses its rights, and gets them again: as long as that lasts, a worker that starts is refused."""
    rabbitmq_node.start()
    rabbitmq_node.ctl("add_user", "shaky", "secret")
    rabbitmq_node.ctl("set_permissions", "shaky", ".*", ".*", ".*")
    (tmp_path / "shaky.py").write_text(
        "from flowkit import App\n"
        "app = App('shop')\n"
        "app.flow(app.channel('orders', dict), name='orders')(lambda order: None)\n"
    )
    broker_url = rabbitmq_node.url(user="shaky", password="secret")
    urls = {"FLOWKIT_BROKER_URL": broker_url, "FLOWKIT_DATABASE_URL": sqlite_url}
    store: Any = open_store(Settings(database_url=sqlite_url), check=False)
    store.schema.upgrade()
    instance = subprocess.Popen(
        [sys.executable, "-m", "flowkit", "run", "shaky.py"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **urls},
    )  # fmt: skip
    assert instance.stderr is not None
    try:

        def ready() -> list[int]:
            return [one.pid for one in store.ledger.workers() if one.state == "ready"]

        wait_until(lambda: bool(ready()))
        (first,) = ready()
        rabbitmq_node.ctl("clear_permissions", "shaky")
        os.kill(first, signal.SIGKILL)
        for line in instance.stderr:
            if "was refused (exit status 2) and is started again" in line:
                break
        assert instance.poll() is None
        rabbitmq_node.ctl("set_permissions", "shaky", ".*", ".*", ".*")
        wait_until(lambda: bool(set(ready()) - {first}))
        instance.terminate()
        instance.communicate(timeout=60)
        assert instance.returncode == 0
    finally:
        instance.kill()
        instance.communicate()
        store.close()
        rabbitmq_node.ctl("delete_user", "shaky")


def test_row_24_a_body_over_the_limit_is_refused_at_the_send(sqlite_url: str, rabbitmq_url: str) -> None:
    app = App("shop")
    app.flow(app.channel("files", bytes), name="store")(lambda file: None)
    app.connect(connect(Settings(database_url=sqlite_url, broker_url=rabbitmq_url)))
    with closing(app), pytest.raises(TooLarge, match="exceeds the limit of 16,777,216 bytes"):
        app.publish("files", b"x" * (16 * 1024 * 1024 + 1))
