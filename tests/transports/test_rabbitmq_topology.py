"""RabbitMQ with wrong queues, policies and users: FlowKit refuses them or tells of them."""

import re
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from pika import BlockingConnection

from flowkit import App, ConfigError
from flowkit.cli.describe import check
from flowkit.cli.load import load
from flowkit.engine.relay import Relay
from flowkit.engine.worker import Worker
from flowkit.services import connect, open_store
from flowkit.settings import Settings
from flowkit.transports.rabbitmq.queues import ARGUMENTS, Queues
from flowkit.transports.rabbitmq.servers import servers
from tests.conftest import CI
from tests.services import free_port
from tests.services.proxy import Proxy
from tests.services.rabbitmq import RabbitMQ, find_binaries
from tests.support.broker_shop import Shop
from tests.support.hostile_broker import shop, start
from tests.support.waiting import wait_until

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
