"""Identities of the app's messages, taken or replaced by programs that publish to the same broker."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from pika import BlockingConnection, URLParameters
from sqlalchemy import text

from benchmarks.attack.app import Base, Order, app, orders
from benchmarks.attack.suppliers import SUPPLIERS, Sent
from benchmarks.attack.verdict import Verdict
from flowkit.errors import FlowKitError
from flowkit.services import connect, open_store
from flowkit.settings import Settings
from flowkit.sla.testbed import Node, wait_until
from flowkit.transports.rabbitmq.queues import Queues
from tests.services.postgresql import PostgreSQL
from tests.services.rabbitmq import RabbitMQ

APP, FLOW = "benchmarks.attack.app:app", "shop.accept"
RIGHTS = {
    "worker": (r"^(flowkit\..*|orders)$", r"^(flowkit\..*|orders|amq\.default)$", r"^(flowkit\..*|orders)$"),
    "supplier": ("^$", "^orders$", "^$"),
    "consumer": (r"^billing\..*$", r"^billing\..*$", r"^(orders|billing\..*)$"),
    "careless": ("^$", r"^(orders|amq\.default)$", "^$"),
}
"""The users of docs/guides/security.md, and one with a right that the page gives to nobody but the worker."""
NAMES = ("shop", "shop.accept", "shop.place", "orders", "foreign")
"""Sources that the app's own messages have, or that sound like them."""
SECONDS = 20.0
EFFECTS = text("SELECT name, source FROM effects WHERE id = :id ORDER BY row")
WAITS = text("SELECT attempts FROM flowkit_inbox WHERE flow = :flow AND id = :id AND state = 0 AND attempts > 0")


def named(id: str, source: str) -> Mapping[str, str]:
    """The headers of a CloudEvent that claims to be this one."""
    return {"ce-specversion": "1.0", "ce-id": id, "ce-source": source, "ce-type": "Order"}


def enveloped(id: str, generation: int) -> Mapping[str, str]:
    """The header in which FlowKit keeps the envelope of a message of the app, forged."""
    now = time.time()
    fields = [f"forged-{id}", generation, 0, now, id, "shop", "orders", "Order", None, now, None, None]
    return {"flowkit": json.dumps(fields)}


def body(name: str, late: bool = False) -> bytes:
    return Order(name=name, late=late).model_dump_json().encode()


class Ground:
    """The app with one worker on RabbitMQ and PostgreSQL, and a user of the broker for each kind of program."""

    def __init__(self, database: str, urls: Mapping[str, str]) -> None:
        self.urls = urls
        services: Any = connect(Settings(database_url=database, broker_url=urls["worker"]))
        self.store = services.store
        app.connect(services)
        self.queue = Queues(self.store.identity()).name(FLOW)

    def publish(self, id: str, late: bool = False) -> None:
        """Publish a true order of the app."""
        app.publish(orders, Order(name="true", late=late), id=id)

    def effects(self, id: str) -> list[tuple[str, str]]:
        """The effects under an id: the name of the order, and the source of its message."""
        with self.store.dialect.engine.connect() as connection:
            return [(name, source) for name, source in connection.execute(EFFECTS, {"id": id})]

    def waits(self, id: str) -> bool:
        """Whether a message waits for its next attempt."""
        with self.store.dialect.engine.connect() as connection:
            return connection.execute(WAITS, {"flow": FLOW, "id": id}).first() is not None

    def fate(self, attack: str, tried: str, ids: Sequence[str]) -> Verdict:
        """Wait until the true order of each id took effect, and say whether each did, once, and none was forged."""
        self.seen(lambda: all(("true", "shop") in self.effects(id) for id in ids))
        ours = [[name for name, source in self.effects(id) if source == "shop"] for id in ids]
        if all(names == ["true"] for names in ours):
            return Verdict(attack, tried, f"all {len(ids)} true orders took effect once", True)
        lost, false = sum("true" not in names for names in ours), sum("forged" in names for names in ours)
        seen = f"{lost} of {len(ids)} true orders did not take effect, {false} forged ones did under the app's name"
        return Verdict(attack, tried, seen, False)

    def seen(self, condition: Callable[[], bool]) -> bool:
        """Whether something comes true in time. Blocks."""
        try:
            wait_until(condition, "it was not seen", SECONDS)
        except FlowKitError:
            return False
        return True


def in_advance(ground: Ground) -> Verdict:
    """A foreign event takes the id of an order that is still to come, under each name that the app has."""
    ids = {f"advance-{one.name}-{source}": (one, source) for one in SUPPLIERS for source in NAMES}
    for id, (supplier, source) in ids.items():
        supplier.publish(ground.urls["supplier"], Sent("orders", "order", body("forged"), id, named(id, source)))
    ground.seen(lambda: all(ground.effects(id) for id in ids))
    for id in ids:
        ground.publish(id)
    tried = f"events with the id of a later order, and the source {', '.join(NAMES)}; pika, kombu, aio-pika"
    return ground.fate("an identity taken in advance", tried, list(ids))


def forged(ground: Ground, user: str, exchange: str, generation: int) -> Verdict:
    """An envelope of ours with a high generation, for orders that wait for their second attempt; or an early one."""
    late, place = generation > 0, f"exchange {exchange}" if exchange else "the queue of the flow"
    ids = {f"forged-{one.name}-{user}-{generation}": one for one in SUPPLIERS}
    refused: list[str] = []
    if late:
        for id in ids:
            ground.publish(id, late=True)
        ground.seen(lambda: all(ground.waits(id) for id in ids))
    for id, supplier in ids.items():
        sent = Sent(exchange, "order" if exchange else ground.queue, body("forged"), id, enveloped(id, generation))
        if supplier.publish(ground.urls[user], sent):
            refused.append(id)
    if not late:
        if len(refused) < len(ids):
            ground.seen(lambda: all(ground.effects(id) for id in ids if id not in refused))
        for id in ids:
            ground.publish(id)
    what = f"generation {generation} for an order that waits for its retry" if late else "for an order to come"
    tried = f"an envelope of FlowKit, {what}, published to {place} as {user}"
    found = ground.fate("a forged envelope", tried, list(ids))
    return found._replace(seen=f"{found.seen}; the broker refused {len(refused)} of {len(ids)}")


def copied(ground: Ground) -> Verdict:
    """An event that FlowKit gave to the exchange comes back: as it is, and with another body."""
    ids = [f"copied-{one.name}" for one in SUPPLIERS]
    with closing(BlockingConnection(URLParameters(ground.urls["consumer"]))) as connection:
        channel = connection.channel()
        channel.queue_declare("billing.orders", exclusive=True)
        channel.queue_bind("billing.orders", "orders", "#")
        for id in ids:
            ground.publish(id)
        events: dict[str, Mapping[str, str]] = {}

        def came() -> bool:
            _, properties, content = channel.basic_get("billing.orders", auto_ack=True)
            if properties is not None and content is not None:
                headers = {name: str(value) for name, value in (properties.headers or {}).items()}
                events[headers.get("ce-id", "")] = headers
            return set(ids) <= set(events)

        ground.seen(came)
    for id, supplier in zip(ids, SUPPLIERS, strict=True):
        for content in (body("true"), body("forged")):
            supplier.publish(ground.urls["supplier"], Sent("orders", "order", content, id, events.get(id, {})))
    ground.seen(lambda: all(len(ground.effects(id)) > 1 for id in ids))
    return ground.fate("an event of ours replayed", "its exact copy, and one with another body", ids)


def ledger(ground: Ground) -> Verdict:
    """The sum of the ledger, while all of that was done."""
    balances = ground.store.ledger.balances()
    ground.seen(lambda: all(one.balanced and not one.pending for one in ground.store.ledger.balances().values()))
    balances = ground.store.ledger.balances()
    wrong = sorted(flow for flow, one in balances.items() if not one.balanced or one.pending)
    seen = f"does not balance: {', '.join(wrong)}" if wrong else f"balances: {balances[FLOW].accepted} accepted"
    return Verdict("the ledger after these", "flowkit audit's sum", seen, not wrong)


@contextmanager
def _ground() -> Iterator[Ground]:
    with ExitStack() as opened:
        database, broker = opened.enter_context(closing(PostgreSQL())), opened.enter_context(closing(RabbitMQ()))
        database.start()
        broker.start()
        url = database.create_database("attack")
        store = open_store(Settings(database_url=url), check=False)
        store.schema.upgrade()
        Base.metadata.create_all(store.dialect.engine)
        store.close()
        for name, rights in RIGHTS.items():
            broker.ctl("add_user", name, "secret")
            broker.ctl("set_permissions", name, *rights)
        urls = {name: broker.url(user=name, password="secret") for name in RIGHTS}
        node = Node(APP, (), {"FLOWKIT_DATABASE_URL": url, "FLOWKIT_BROKER_URL": urls["worker"]})
        opened.callback(node.kill)
        node.start()
        wait_until(lambda: node.ready, "the instance is not ready")
        ground = Ground(url, urls)
        opened.callback(app.close)
        yield ground


def attacks() -> Iterator[Verdict]:
    """Attack by three client libraries, last by the rights that docs/guides/security.md gives to no other program."""
    with _ground() as ground:
        yield in_advance(ground)
        yield forged(ground, "supplier", "orders", 1000)
        yield forged(ground, "supplier", "orders", 0)
        yield copied(ground)
        yield forged(ground, "supplier", "", 1000)
        yield ledger(ground)
        yield forged(ground, "careless", "", 1000)
        yield forged(ground, "careless", "", 0)
