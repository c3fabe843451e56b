"""The rights that docs/guides/security.md gives to each user of the broker: enough, and no more can be done."""

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from pika import BasicProperties, BlockingConnection
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from flowkit.transports.rabbitmq.queues import Queues
from flowkit.transports.rabbitmq.servers import servers
from tests.services.rabbitmq import RabbitMQ
from tests.support import ROOT
from tests.support.shared_site import Site, Supplier
from tests.support.shop import Order
from tests.support.waiting import wait_until

pytestmark = pytest.mark.rabbitmq
PAGE = ROOT / "docs" / "guides" / "security.md"
ROW = re.compile(r"^\| `(\w+)` \| `(.*?)` \| `(.*?)` \| `(.*?)` \|$", re.MULTILINE)


class Users(NamedTuple):
    worker: str
    supplier: str
    consumer: str


@pytest.fixture(scope="module")
def users(rabbitmq_node: RabbitMQ) -> Iterator[Users]:
    """The URL of each user of the page, with the rights of the page."""
    rabbitmq_node.start()
    rights = {name: [one.replace("\\|", "|") for one in patterns] for name, *patterns in ROW.findall(PAGE.read_text())}
    assert list(rights) == list(Users._fields)
    for name, patterns in rights.items():
        rabbitmq_node.ctl("add_user", name, "secret")
        rabbitmq_node.ctl("set_permissions", name, *patterns)
    yield Users(*(rabbitmq_node.url(user=name, password="secret") for name in rights))
    for name in rights:
        rabbitmq_node.ctl("delete_user", name)


def test_the_rights_of_the_page_are_enough(users: Users, tmp_path: Path) -> None:
    with (
        closing(Site("shop", "orders", tmp_path, users.worker)) as site,
        site.worker(),
        closing(Supplier(users.consumer)) as consumer,
        closing(Supplier(users.supplier)) as supplier,
    ):
        consumer.channel.queue_declare("billing.orders", exclusive=True)
        consumer.channel.queue_bind("billing.orders", "orders", "#")
        supplier.send("orders", b'{"name": "theirs"}', message_id="1")
        site.app.publish(site.orders, Order(name="ours"))
        wait_until(lambda: site.effects() == {"theirs": 1, "ours": 1})
        got = {Order.model_validate_json(consumer.get("billing.orders")[1]).name for _ in range(2)}
        assert got == {"theirs", "ours"}


def forge(channel: BlockingChannel, queue: str) -> None:
    """Put an envelope into a queue of FlowKit."""
    channel.confirm_delivery()
    channel.basic_publish("", queue, b"{}", BasicProperties(headers={"flowkit": "[]"}))


DEEDS: dict[str, Callable[[BlockingChannel, str], object]] = {
    "forge": forge,
    "consume": lambda channel, queue: channel.basic_get(queue),
    "bind": lambda channel, queue: channel.queue_bind(queue, "orders", "x"),
    "unbind": lambda channel, queue: channel.queue_unbind(queue, "orders", "#"),
    "purge": lambda channel, queue: channel.queue_purge(queue),
    "delete": lambda channel, queue: channel.queue_delete(queue),
    "delete the exchange": lambda channel, queue: channel.exchange_delete("orders"),
    "make a queue": lambda channel, queue: channel.queue_declare("mine", durable=True),
}


@pytest.mark.parametrize("user", ["supplier", "consumer"])
def test_nothing_else_can_be_done(users: Users, tmp_path: Path, user: str) -> None:
    with closing(Site("shop", "orders", tmp_path, users.worker)) as site, site.worker():
        queue = Queues(site.store.identity()).name("shop.accept")
        (server, *_) = servers(getattr(users, user))
        with closing(BlockingConnection(server)) as connection:
            for name, deed in DEEDS.items():
                with pytest.raises(ChannelClosedByBroker, match=r"403, .ACCESS_REFUSED"):
                    deed(connection.channel(), queue)
                    pytest.fail(f"{user} may {name}", pytrace=False)
