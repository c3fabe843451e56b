"""RabbitMQ with wrong settings, wrong queues, and messages that no FlowKit made."""

import datetime
import decimal
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import hypothesis
import pika.data
import pytest
from hypothesis import strategies
from pika import BasicProperties, BlockingConnection
from pika.exceptions import UnsupportedAMQPFieldException

from flowkit import App, ConfigError, Message, RetryPolicy, TooLarge
from flowkit.cli.describe import check
from flowkit.cli.load import load
from flowkit.engine.relay import Relay
from flowkit.engine.worker import Worker
from flowkit.errors import BrokerUnavailable, Undecodable
from flowkit.message import MAX_HEADERS, MAX_NAME, check_headers, new_id
from flowkit.ports import Copy
from flowkit.services import SystemClock, connect, open_store
from flowkit.settings import Settings
from flowkit.transports.rabbitmq.envelope import TOO_DEEP, delivery
from flowkit.transports.rabbitmq.queues import ARGUMENTS, Queues
from flowkit.transports.rabbitmq.servers import servers
from flowkit.transports.rabbitmq.transport import RabbitTransport
from tests.conftest import CI
from tests.keys import ring, signatures
from tests.services import free_port
from tests.services.proxy import Proxy
from tests.services.rabbitmq import RabbitMQ, find_binaries
from tests.shop import Order
from tests.test_rabbitmq import ROOT, Shop, wait_until

# ------------------------------------------------------------ settings


def shop(*channels: str) -> App:
    """An app whose flows do nothing."""
    app = App("shop")
    for name in channels or ("orders",):
        app.flow(app.channel(name, Order), name=name)(lambda order: None)
    return app


def start(app: App, url: str, broker_url: str) -> Worker:
    """A worker, which closes what it opened when it cannot start."""
    services = connect(Settings(database_url=url, broker_url=broker_url))
    try:
        return Worker(app, services)
    except BaseException:
        services.close()
        raise


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"vhost": "nowhere"}, ConfigError, "vhost nowhere not found"),
        ({"user": "nobody"}, ConfigError, "ProbableAuthenticationError|ACCESS_REFUSED"),
        ({"password": "hidden-secret"}, ConfigError, "ProbableAuthenticationError|ACCESS_REFUSED"),
        ({"port": 1}, BrokerUnavailable, "Connection refused"),
    ],
    ids=["vhost", "user", "password", "port"],
)
def test_a_setting_that_does_not_let_us_in_is_named(
    sqlite_url: str, rabbitmq_node: RabbitMQ, rabbitmq_url: str, change: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as refused:
        start(shop(), sqlite_url, rabbitmq_node.url(**change))
    assert "FLOWKIT_BROKER_URL is amqp://" in str(refused.value)
    assert "; check " in str(refused.value)
    assert "hidden-secret" not in str(refused.value)


def test_a_server_that_is_no_broker_is_named(sqlite_url: str) -> None:
    """It takes the connection and says something else, or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.recv(100)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        port = server.getsockname()[1]
        with pytest.raises(BrokerUnavailable, match="FLOWKIT_BROKER_URL"):
            start(shop(), sqlite_url, f"amqp://u:p@127.0.0.1:{port}/?heartbeat=2")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, and a certificate for localhost by the first."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for authority in ("ours", "theirs"):
        openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={authority}",
            "-keyout", f"{authority}.key", "-out", f"{authority}.pem",
        )  # fmt: skip
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "asked.pem")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    openssl(
        "x509", "-req", "-in", "asked.pem", "-CA", "ours.pem", "-CAkey", "ours.key", "-CAcreateserial", "-days", "2",
        "-extfile", "names", "-out", "cert.pem",
    )  # fmt: skip
    for file in folder.iterdir():
        file.chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def tls_port(certificates: Path, rabbitmq_node: RabbitMQ) -> Iterator[int]:
    """A port of the node that speaks TLS."""
    rabbitmq_node.start()
    port = free_port()
    files = ", ".join(
        f'{{{option}, "{certificates / name}"}}'
        for option, name in (("cacertfile", "ours.pem"), ("certfile", "cert.pem"), ("keyfile", "key.pem"))
    )
    rabbitmq_node.evaluate(f'rabbit_networking:start_ssl_listener({{"127.0.0.1", {port}}}, [{files}], 2, 2).')
    yield port


@pytest.mark.parametrize(
    ("host", "options", "message"),
    [
        ("localhost", "cacertfile={}/ours.pem", ""),
        ("localhost", "verify=verify_none", ""),
        ("localhost", "", "certificate verify failed"),
        ("localhost", "cacertfile={}/theirs.pem", "certificate verify failed"),
        ("127.0.0.1", "cacertfile={}/ours.pem", "certificate is not valid for '127.0.0.1'"),
    ],
    ids=["known", "unverified", "system", "other-authority", "other-name"],
)
def test_threat_tls_is_verified_unless_told_otherwise(
    sqlite_url: str, rabbitmq_node: RabbitMQ, tls_port: int, certificates: Path, host: str, options: str, message: str
) -> None:
    url = rabbitmq_node.url(tls_port).replace("amqp:", "amqps:").replace("127.0.0.1", host)
    url = f"{url}?{options.format(certificates)}"
    if not message:
        worker = start(shop(), sqlite_url, url)
        worker.close()
        worker.services.close()
        return
    with pytest.raises((ConfigError, BrokerUnavailable), match=message) as refused:
        start(shop(), sqlite_url, url)
    assert "FLOWKIT_BROKER_URL" in str(refused.value)


# ------------------------------------------------------------ queues


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({}, "inequivalent arg"),
        ({"x-queue-type": "classic"}, "inequivalent arg"),
        (ARGUMENTS | {"x-overflow": "drop-head"}, "x-overflow"),
        (ARGUMENTS | {"x-delivery-limit": 3}, "x-delivery-limit"),
        (ARGUMENTS | {"x-message-ttl": 1000}, "x-message-ttl"),
        (ARGUMENTS | {"x-max-length": 10}, "x-max-length"),
        (ARGUMENTS | {"x-expires": 100_000}, "x-expires"),
    ],
    ids=["classic", "declared-classic", "drop-head", "delivery-limit", "ttl", "max-length", "expires"],
)
def test_row_22_a_queue_that_discards_is_refused_by_name(
    sqlite_url: str, rabbitmq_url: str, arguments: dict[str, Any], fault: str
) -> None:
    store: Any = open_store(Settings(database_url=sqlite_url), check=False)
    queue = Queues(store.identity()).name("shop.orders")
    store.close()
    with closing(BlockingConnection(servers(rabbitmq_url)[0])) as connection:
        connection.channel().queue_declare(queue, durable=True, arguments=arguments)
        with pytest.raises(ConfigError, match=f"FLOWKIT_BROKER_URL.*{re.escape(queue)}.*{fault}"):
            start(shop(), sqlite_url, rabbitmq_url)
        connection.channel().queue_delete(queue)


@pytest.fixture(scope="module")
def managed() -> Iterator[tuple[RabbitMQ, int]]:
    """A node with the management API, and its port."""
    if find_binaries() is None and not CI:
        pytest.skip("RabbitMQ is not installed: run tests/services/install")
    port = free_port()
    with closing(
        RabbitMQ(f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {port}\n", "rabbitmq_management")
    ) as node:
        node.start()
        yield node, port


DISCARDING = {
    "overflow": ("policy", '{"overflow": "drop-head", "max-length": 10}', "overflow=drop-head"),
    "ttl": ("policy", '{"message-ttl": 1000}', "message-ttl=1000"),
    "expires": ("operator_policy", '{"expires": 100000}', "expires=100000"),
    "delivery-limit": ("operator_policy", '{"delivery-limit": 3}', "delivery-limit=3"),
}
HANGS = r"^(([a-z0-9.-])+.)+!$"
"""Python's regular expressions try every way to split a name, of which there are more than anybody waits for."""


@pytest.mark.rabbitmq
def test_row_22_a_policy_that_discards_is_refused_by_name(sqlite_url: str, managed: tuple[RabbitMQ, int]) -> None:
    """RabbitMQ matches them: by its own syntax (\\Q, \\E and \\h are none of Python's), in bounded time."""
    node, port = managed
    settings = Settings(database_url=sqlite_url, broker_url=node.url(), broker_management_url=node.management_url(port))
    named = {flow: f"{flow}-{uuid4()}" for flow in DISCARDING}
    for flow, (kind, definition, _) in DISCARDING.items():
        node.ctl(f"set_{kind}", named[flow], rf"^\Qflowkit.\E.*\.{flow}$|\h", definition, "--apply-to", "queues")
    node.ctl("set_policy", "slow", HANGS, '{"expires": 1000}', "--apply-to", "queues", "--priority", "9")
    try:
        with closing(connect(settings)) as services:
            with pytest.raises(ConfigError):
                Worker(shop(*DISCARDING, "safe"), services)  # makes all the queues
            for flow, (_, _, fault) in DISCARDING.items():
                told = f"policy {named[flow]} gives queue flowkit.*{flow} {fault}.*vanish silently"
                with pytest.raises(ConfigError, match=told):
                    Worker(shop(flow), services)
            Worker(shop("safe"), services).close()
    finally:
        for flow, (kind, _, _) in DISCARDING.items():
            node.ctl(f"clear_{kind}", named[flow])
        node.ctl("clear_policy", "slow")


@pytest.mark.rabbitmq
def test_row_22_a_policy_that_discards_nothing_is_taken(sqlite_url: str, managed: tuple[RabbitMQ, int]) -> None:
    node, port = managed
    settings = Settings(database_url=sqlite_url, broker_url=node.url(), broker_management_url=node.management_url(port))
    node.ctl(
        "set_policy", "full", "^flowkit", '{"max-length": 10, "overflow": "reject-publish"}', "--apply-to", "queues"
    )
    try:
        with closing(connect(settings)) as services:
            Worker(shop(), services).close()
    finally:
        node.ctl("clear_policy", "full")


@pytest.mark.rabbitmq
def test_users_of_the_broker_that_may_do_too_much_are_told(sqlite_url: str, managed: tuple[RabbitMQ, int]) -> None:
    node, port = managed
    rights = {"supplier": ("^$", "^orders$", "^$"), "anybody": ("^$", ".", "^.*$"), "seer": ("^$", "^$", "^$")}
    for user, patterns in rights.items():
        node.ctl("add_user", user, "secret")
        node.ctl("set_permissions", user, *patterns)
    node.ctl("set_user_tags", "seer", "policymaker")
    management = node.management_url(port)
    own = urlsplit(node.url()).username

    def audited(url: str) -> list[str]:
        settings = Settings(database_url=sqlite_url, broker_url=node.url(), broker_management_url=url)
        with closing(connect(settings)) as services:
            return [line for line in services.transport.audit([]) if "user" in line]

    try:
        anybody, flowkit = sorted(audited(management))
        assert anybody.startswith("user anybody of RabbitMQ may write and read everything in virtual host /; docs")
        assert flowkit.startswith(
            f"user {own} of RabbitMQ, which FlowKit uses, may configure, write and read everything"
        )
        (line,) = audited(f"http://seer:secret@127.0.0.1:{port}")
        assert line.endswith("are not audited: that needs a user with the tag administrator")
    finally:
        for user in rights:
            node.ctl("delete_user", user)


@pytest.mark.rabbitmq
def test_a_policy_that_is_set_while_a_worker_runs_is_told_of(
    sqlite_url: str, managed: tuple[RabbitMQ, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flowkit.transports.rabbitmq.policies.LOOK_SECONDS", 0.2)
    node, port = managed
    settings = Settings(database_url=sqlite_url, broker_url=node.url(), broker_management_url=node.management_url(port))
    with closing(connect(settings)) as services, closing(Worker(shop(), services)):
        node.ctl("set_policy", "late", "^flowkit", '{"message-ttl": 1000}', "--apply-to", "queues")
        try:
            wait_until(lambda: "RabbitMQ's policy late gives queue flowkit." in caplog.text)
        finally:
            node.ctl("clear_policy", "late")


@pytest.mark.rabbitmq
def test_row_22_nothing_confirmed_vanishes_from_a_queue_that_is_overfilled(
    sqlite_url: str, managed: tuple[RabbitMQ, int]
) -> None:
    node, _ = managed
    names = [str(number) for number in range(200)]
    node.ctl(
        "set_policy", "small", "^flowkit", '{"max-length": 20, "overflow": "reject-publish"}', "--apply-to", "queues"
    )
    with closing(Shop(sqlite_url, node.url())) as made:
        try:
            made.publish(*names)
            with closing(connect(made.settings)) as services:
                services.transport.declare(list(made.app.flows))
                relay = Relay(services.store, services.transport, services.clock, "relay")
                wait_until(lambda: services.transport.ready)
                while relay.step():
                    """Those that are refused are leased until the next try."""
                held = services.transport.depths(["shop.accept"])["shop.accept"]
                assert 20 <= held < 200, "the queue refused some"
                backlog = made.store.ledger.backlog()["shop.accept"]
                assert (backlog.parked, backlog.due, backlog.leased) == (200 - held, 0, 0)
        finally:
            node.ctl("clear_policy", "small")
        with made.worker():
            made.check(*names)


@pytest.mark.rabbitmq
def test_a_management_api_that_cannot_be_used_is_named(
    sqlite_url: str, managed: tuple[RabbitMQ, int], caplog: pytest.LogCaptureFixture
) -> None:
    node, port = managed

    def begin(url: str) -> None:
        settings = Settings(database_url=sqlite_url, broker_url=node.url(), broker_management_url=url)
        with closing(connect(settings)) as services:
            Worker(shop(), services).close()

    for url, message in (
        (node.management_url(port, "hidden-secret"), "answers 401"),
        (node.management_url(port) + "/elsewhere", "answers 40"),
        ("ftp://u:hidden-secret@host", "write http://"),
    ):
        with pytest.raises(ConfigError, match=f"FLOWKIT_BROKER_MANAGEMENT_URL is.*{message}") as refused:
            begin(url)
        assert "hidden-secret" not in str(refused.value)
    begin("http://u:hidden-secret@127.0.0.1:1")  # away: messages do not need it
    assert "the policies of RabbitMQ are not audited now: FLOWKIT_BROKER_MANAGEMENT_URL" in caplog.text
    assert "hidden-secret" not in caplog.text


def test_flowkit_check_audits_the_topology_and_makes_none(
    sqlite_url: str,
    rabbitmq_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "checked.py").write_text(
        "from flowkit import App\n"
        "app = App('shop')\n"
        "app.flow(app.channel('orders', dict), name='orders')(lambda order: None)\n"
        "app.flow(app.channel('bills', dict, shared=True), name='bills')(lambda bill: None)\n"
    )
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", sqlite_url)
    monkeypatch.setenv("FLOWKIT_BROKER_URL", rabbitmq_url)
    store: Any = open_store(Settings(database_url=sqlite_url), check=False)
    queue = Queues(store.identity()).name("shop.orders")
    store.close()
    with closing(BlockingConnection(servers(rabbitmq_url)[0])) as connection:
        channel = connection.channel()
        for there in (0, 1):
            check(str(tmp_path / "checked.py"))
            said = capsys.readouterr().out
            assert f"RabbitMQ has {there} of the 2 queues, declared as FlowKit needs them" in said
            missing = "shop.bills" if there else "shop.bills, shop.orders"
            assert f"the first worker creates those of {missing}\n" in said
            assert "the policies of RabbitMQ are not audited: that needs FLOWKIT_BROKER_MANAGEMENT_URL" in said
            channel.queue_declare(queue, durable=True, arguments=ARGUMENTS)
        channel.queue_delete(queue)
        channel.queue_declare(queue, durable=True)
        with pytest.raises(ConfigError, match=f"FLOWKIT_BROKER_URL.*{queue} that is not as FlowKit declares it"):
            check(str(tmp_path / "checked.py"))


def test_a_handler_that_may_outlast_the_brokers_timeout_is_warned_of(
    sqlite_url: str,
    rabbitmq_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "long.py").write_text(
        "from flowkit import App\n"
        "app = App('shop')\n"
        "orders = app.channel('orders', dict)\n"
        "app.flow(orders, name='long', deadline='2h')(lambda order: None)\n"
        "app.flow(orders, name='short', deadline='29m')(lambda order: None)\n"
    )
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", sqlite_url)
    monkeypatch.setenv("FLOWKIT_BROKER_URL", rabbitmq_url)
    check(str(tmp_path / "long.py"))
    said = capsys.readouterr().out
    assert "flow shop.long may take 2h (deadline=), and RabbitMQ delivers a message again after" in said
    assert "app shop: 2 flows, 1 channels: 1 warnings\n" in said
    start(load(str(tmp_path / "long.py")), sqlite_url, rabbitmq_url).services.close()
    assert caplog.text.count("its consumer_timeout, 30m unless its configuration says otherwise") == 1


@pytest.mark.rabbitmq
def test_flowkit_check_says_what_was_removed_and_does_not_restore_it(
    sqlite_url: str, managed: tuple[RabbitMQ, int]
) -> None:
    node, port = managed
    app = App("shop")
    name = f"bills-{uuid4()}"
    bills = app.channel(name, dict, shared=True)
    app.flow(bills, name="bills")(lambda bill: None)
    settings = Settings(database_url=sqlite_url, broker_url=node.url(), broker_management_url=node.management_url(port))
    with closing(connect(settings)) as services, closing(BlockingConnection(servers(node.url())[0])) as other:
        Worker(app, services).close()
        store: Any = services.store
        queue = Queues(store.identity()).name("shop.bills")

        def said() -> str:
            return "\n".join(services.transport.audit(list(app.flows), app.shared(store.subscribers.channels())))

        assert "RabbitMQ has 1 of the 1 exchanges of shared channels, declared as FlowKit needs them" in said()
        assert "not bound" not in said()
        other.channel().queue_unbind(queue, name, "#")
        for _ in range(2):
            assert f"queue {queue} is not bound to the exchange {name}" in said()
        other.channel().exchange_delete(name)
        for _ in range(2):
            assert "RabbitMQ has 0 of the 1 exchanges of shared channels" in said()
            assert f"the first worker creates the exchanges {name}" in said()


def test_a_flow_that_cannot_consume_makes_its_worker_unready_by_name(
    sqlite_url: str, rabbitmq_node: RabbitMQ, rabbitmq_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker grants four channels on a connection, and each lane needs one."""
    environment = "application:set_env(rabbit, channel_max, {})."
    rabbitmq_node.evaluate(environment.format(4))
    app = shop("a", "b", "c", "d", "e", "f")
    with Proxy("127.0.0.1", rabbitmq_node.port) as proxy:
        services = connect(Settings(database_url=sqlite_url, broker_url=rabbitmq_node.url(proxy.port)))
        worker = Worker(app, services)
        store: Any = services.store
        assert len(worker.lanes) > 4
        (hindered, *_) = sorted(services.transport.hindered)
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:

            def told() -> str:
                return str(store.ledger.workers()[0].state)

            wait_until(lambda: told().startswith("unready: "))
            assert hindered in told()
            assert not worker._slots.ready
            why = "RabbitMQ grants this connection no more channels (channel_max); each lane needs one"
            assert services.transport.hindered[hindered] == why
            assert f"flow {hindered}: its queue cannot be consumed: {why}" in caplog.text
            rabbitmq_node.evaluate(environment.format(2047))
            proxy.cut()
            wait_until(lambda: told() == "ready" and worker._slots.ready)
        finally:
            rabbitmq_node.evaluate(environment.format(2047))
            worker.stop()
            thread.join(60)
            services.close()


# ------------------------------------------------------------ messages


class Raw(bytes):
    """A value of a table, with its type, as it goes over the wire."""


def encode_raw(pieces: list[bytes], value: Any) -> int:
    if isinstance(value, Raw):
        pieces.append(bytes(value))
        return len(value)
    return _encode(pieces, value)


_encode = pika.data.encode_value

EVERY_TYPE: dict[str, Any] = {
    "text": "text",
    "empty": "",
    "bytes": b"\xff\x00",
    "bool": True,
    "long": 2**62,
    "negative": -(2**62),
    "decimal": decimal.Decimal("3.14"),
    "time": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "nothing": None,
    "table": {"deep": {"deeper": [1, {"a": b"\xfe"}]}},
    "array": ["a", 1, None, [2]],
    "byte": Raw(b"b\xff"),
    "unsigned byte": Raw(b"B\xff"),
    "short": Raw(b"s" + struct.pack(">h", -3)),
    "unsigned short": Raw(b"u" + struct.pack(">H", 3)),
    "int": Raw(b"I" + struct.pack(">i", -3)),
    "unsigned int": Raw(b"i" + struct.pack(">I", 3)),
    "float": Raw(b"f" + struct.pack(">f", 1.5)),
    "double": Raw(b"d" + struct.pack(">d", 1.5)),
    "not utf-8": Raw(b"S" + struct.pack(">I", 2) + b"\xff\xfe"),
    "far future": Raw(b"T" + struct.pack(">Q", 2**63)),
}


class Sink:
    """A worker of one flow, and a program that puts what it likes into its queue."""

    def __init__(self, url: str, broker_url: str) -> None:
        self.app = App("shop")
        self.orders = f"orders-{uuid4()}"
        self.seen: list[Message] = []
        self.app.flow(
            self.app.channel(self.orders, Order, shared=True),
            name="accept",
            retry=RetryPolicy(attempts=2, first="10ms", jitter=0),
        )(self.accept)
        services: Any = connect(Settings(database_url=url, broker_url=broker_url))
        self.services, self.store = services, services.store
        self.worker = Worker(self.app, self.services)
        self.queue = Queues(self.store.identity()).name("shop.accept")
        self.channel = BlockingConnection(servers(broker_url)[0]).channel()
        self.channel.confirm_delivery()

    def accept(self, order: Order, message: Message) -> None:
        self.seen.append(message)
        if order.deed == "fail":
            raise ValueError("no such order")

    def put(self, body: bytes, **properties: Any) -> None:
        self.channel.basic_publish("", self.queue, body, BasicProperties(**properties), mandatory=True)

    def letters(self) -> list[Any]:
        return list(self.store.dead_letters.read(self.store.dead_letters.select()))

    def ended(self) -> int:
        """How many are at their end."""
        return int(self.store.ledger.balances()["shop.accept"].ended)

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self.worker.run)
        thread.start()
        try:
            yield
            assert thread.is_alive()
        finally:
            self.worker.stop()
            thread.join(60)
            self.channel.connection.close()
            self.services.close()


GOOD = b'{"name": "a"}'


@pytest.fixture
def sink(sqlite_url: str, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sink]:
    monkeypatch.setattr(pika.data, "encode_value", encode_raw)
    made = Sink(sqlite_url, rabbitmq_url)
    with made.running():
        yield made


def test_headers_of_every_type_are_kept_as_text(sink: Sink, caplog: pytest.LogCaptureFixture) -> None:
    for name, value in EVERY_TYPE.items():
        sink.put(GOOD, message_id=name, headers={name: value})
    sink.put(GOOD, message_id="all", headers=EVERY_TYPE)
    wait_until(lambda: sink.ended() == len(EVERY_TYPE) + 1)
    assert "no connection" not in caplog.text
    seen = {message.id: message.headers for message in sink.seen}
    assert all(isinstance(value, str) for headers in seen.values() for value in headers.values())
    assert seen["all"]["text"] == "text"
    assert json.loads(seen["all"]["table"])["deep"]["deeper"][0] == 1
    assert seen["all"]["bytes"] == "\\xff\\x00"
    assert seen["all"]["far future"] == str(2**63)
    assert seen["all"]["double"] == "1.5"
    assert seen["all"]["decimal"] == "3.14"
    assert seen["all"]["time"] == "2026-01-02T00:00:00Z"
    assert seen.keys() == {*EVERY_TYPE, "all"}


def nested(depth: int) -> Raw:
    """A table in a table, so deep."""
    value = b"I\x00\x00\x00\x01"
    for _ in range(depth):
        inner = b"\x01a" + value
        value = b"F" + struct.pack(">I", len(inner)) + inner
    return Raw(value)


def test_a_header_that_is_nested_too_deeply_costs_no_connection(sink: Sink, caplog: pytest.LogCaptureFixture) -> None:
    for depth in (31, 32, 33, 300, 5000):
        sink.put(GOOD, message_id=str(depth), headers={"deep": nested(depth), "beside": "it"})
    wait_until(lambda: sink.ended() == 5)
    seen = {message.id: message.headers for message in sink.seen}
    assert {headers["beside"] for headers in seen.values()} == {"it"}
    assert {depth: TOO_DEEP in headers["deep"] for depth, headers in seen.items()} == {
        "31": False, "32": False, "33": True, "300": True, "5000": True,
    }  # fmt: skip
    assert "no connection" not in caplog.text


def test_a_message_that_cannot_be_read_stays_in_its_queue_and_hinders_no_other(
    sink: Sink, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(flow: str, store: str, found: BasicProperties, *rest: Any) -> Any:
        if found.message_id == "bad":
            raise ZeroDivisionError("a defect")
        return delivery(flow, store, found, *rest)

    monkeypatch.setattr("flowkit.transports.rabbitmq.consumer.delivery", read)
    for name in ("bad", "good", "better"):
        sink.put(GOOD, message_id=name)
    wait_until(lambda: sink.ended() == 2)
    assert "flow shop.accept: message bad was left in its queue" in caplog.text
    assert "no connection" not in caplog.text


HOSTILE: list[tuple[str, bytes, dict[str, Any]]] = [
    ("not JSON", b"no JSON", {"message_id": "1"}),
    ("empty", b"", {"message_id": "2"}),
    ("not UTF-8", b"\xff\xfe", {"message_id": "3"}),
    ("deep", b"[" * 100_000, {"message_id": "4"}),
    ("control character in the id", GOOD, {"message_id": "a\nb"}),
    ("NUL in the type", GOOD, {"message_id": "5", "type": "a\0b"}),
    ("NUL in the correlation id", GOOD, {"message_id": "6", "correlation_id": "\0"}),
    ("NUL in the source", GOOD, {"message_id": "7", "app_id": "a\0"}),
    ("an id that is too long", GOOD, {"message_id": "8", "headers": {"ce-id": "x" * 300}}),
    ("headers that are too large", GOOD, {"message_id": "9", "headers": {"many": "x" * 100_000}}),
    ("headers that are too large as text", GOOD, {"message_id": "10", "headers": {"many": b"\0" * 20_000}}),
    ("too large", b'{"name": "' + b"x" * 20_000_000 + b'"}', {"message_id": "11"}),
]


def test_what_cannot_be_decoded_is_a_dead_letter(sink: Sink) -> None:
    for _, body, properties in HOSTILE:
        sink.put(body, **properties)
    wait_until(lambda: sink.ended() == len(HOSTILE))
    assert sink.seen == []
    assert [letter.reason for letter in sink.letters()] == ["undecodable"] * len(HOSTILE)
    assert any("20,000,012 bytes exceeds the limit of 16,777,216 bytes" in letter.error for letter in sink.letters())
    sink.put(GOOD, message_id="good")
    wait_until(lambda: [message.id for message in sink.seen] == ["good"])
    assert sink.store.ledger.balances()["shop.accept"].balanced


ODD: list[dict[str, Any]] = [
    {"message_id": b"\xff"},
    {"message_id": "b", "app_id": b"\xff", "type": b"\xfe", "correlation_id": b"\xfd", "content_type": b"\xfc"},
    {"message_id": "c", "timestamp": 2**64 - 1},
    {"message_id": "d", "timestamp": 0, "priority": 255, "expiration": "100000", "user_id": "flowkit"},
    {"message_id": "e", "headers": {"ce-time": "yesterday", "ce-partitionkey": "", "ce-correlationid": ""}},
    {"message_id": "f", "headers": {"flowkit": "no JSON"}},
    {"message_id": "g", "headers": {"flowkit": json.dumps(["row", "other-store"])}},
    {"message_id": "h", "headers": {"flowkit": json.dumps(["r", -1, 0, 0, "i", "s", "c", "", None, 0, None, None])}},
    {"message_id": "i", "headers": {"flowkit": json.dumps(["r", 2**40, 0, 0, "i", "s", "c", "", None, 0, None, None])}},
    {"message_id": "j", "headers": {"flowkit": {"a": 1}, "x-delivery-count": "many"}},
    {"message_id": "k", "headers": {"CC": [], "BCC": []}},
    {"message_id": "m", "headers": {"a\nb": "c\0d"}},
    {"message_id": "l", "headers": {"x-death": [{"count": 1, "reason": "rejected"}]}},
]


def test_odd_envelopes_are_taken_as_they_come_and_sent_again(sink: Sink) -> None:
    """Each fails once and is retried, so that it goes to the broker a second time, and then is a dead letter."""
    for properties in ODD:
        sink.put(b'{"name": "a", "deed": "fail"}', **properties)
    wait_until(lambda: sink.ended() == len(ODD))
    assert [letter.reason for letter in sink.letters()] == ["failed"] * len(ODD)
    assert len(sink.seen) == 2 * len(ODD)
    assert {message.channel for message in sink.seen} == {sink.orders}
    assert sink.store.ledger.balances()["shop.accept"].accepted == len(ODD)


TEXT = strategies.text(max_size=30)
VALUE = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers(-(2**63), 2**63 - 1)
    | TEXT
    | strategies.binary(max_size=30),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
SHORT = strategies.none() | TEXT | strategies.binary(max_size=30)
NAMES = TEXT | strategies.sampled_from(
    ["flowkit", "ce-id", "ce-time", "ce-source", "CC", "x-delivery-count", "x-death"]
)


SIGNATURES = signatures()


@hypothesis.given(
    headers=strategies.dictionaries(NAMES, VALUE, max_size=5),
    short=strategies.tuples(SHORT, SHORT, SHORT, SHORT, SHORT),
    time=strategies.none() | strategies.integers(0, 2**64 - 1),
    body=strategies.binary(max_size=50),
)
@hypothesis.settings(max_examples=500, suppress_health_check=list(hypothesis.HealthCheck))
def test_row_48_whatever_arrives_becomes_a_delivery(
    headers: dict[str, Any], short: tuple[Any, ...], time: int | None, body: bytes
) -> None:
    id, app, kind, correlation, content = short
    properties = BasicProperties(
        content_type=content, message_id=id, app_id=app, type=kind, correlation_id=correlation, timestamp=time,
        headers=headers,
    )  # fmt: skip
    try:
        sent = BasicProperties().decode(b"".join(properties.encode()))
    except (UnsupportedAMQPFieldException, AssertionError, UnicodeEncodeError, struct.error, ValueError):
        hypothesis.reject()
    found = delivery("shop.accept", "store", sent, body, 1, "", "queue", SIGNATURES)
    assert found is not None
    assert found.foreign
    assert found.message.body == body
    message = found.message
    assert all(isinstance(one, str) for one in (message.id, message.source, message.type, *message.headers.values()))


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
