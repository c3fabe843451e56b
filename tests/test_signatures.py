"""Messages at a broker are signed: nobody else can make, change, or send elsewhere a message of the store's."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pika import BasicProperties
from pika.exceptions import ChannelClosedByBroker
from sqlalchemy import text

from flowkit import App
from flowkit.cli import dead, keys
from flowkit.cli.subscriptions import move
from flowkit.engine.adoption import received, unread
from flowkit.engine.versions import Versions
from flowkit.engine.worker import Worker
from flowkit.errors import ConfigError, DefinitionError, FlowKitError, StoreUnavailable
from flowkit.message import Message, new_id
from flowkit.operations.keys import doubts, note
from flowkit.ports import EXCHANGE, REFUSED, Copy, Delivery, Key, Ring, Rollout, Shared
from flowkit.services import Services, SystemClock, connect, open_store
from flowkit.settings import Settings
from flowkit.store import keyring, tables
from flowkit.transports.rabbitmq import signature
from flowkit.transports.rabbitmq.envelope import delivery, properties
from flowkit.transports.rabbitmq.queues import Queues
from flowkit.transports.rabbitmq.transport import RabbitTransport
from flowkit.transports.sql.transport import SqlTransport
from tests.keys import ring, signatures
from tests.shop import Order, new_app
from tests.test_schema import at
from tests.test_shared import Site, Supplier, wait_until

DAY = 86_400.0
HEADERS = {"tenant": "blue"}
SIGNED = "queue", "[1]", HEADERS, b"body"
CHANGES: dict[str, tuple[Any, ...]] = {
    "address": ("other", "[1]", HEADERS, b"body"),
    "envelope": ("queue", "[2]", HEADERS, b"body"),
    "header": ("queue", "[1]", {"tenant": "red"}, b"body"),
    "header of another type": ("queue", "[1]", {"tenant": 1}, b"body"),
    "header that is gone": ("queue", "[1]", {}, b"body"),
    "body": ("queue", "[1]", HEADERS, b"other"),
    "where the body begins": ("queue", "[1", HEADERS, b"]body"),
}


def check(made: Any, signature: object, signed: tuple[Any, ...] = SIGNED) -> Any:
    address, envelope, headers, body = signed
    return made.covered(address, envelope, signature, headers, body)


@pytest.mark.parametrize("changed", CHANGES)
def test_a_signature_covers_all_of_a_message(changed: str) -> None:
    made = signatures()
    signature = made.sign(*SIGNED)
    assert check(made, signature) == HEADERS
    assert check(made, signature, CHANGES[changed]) is None


def test_headers_that_a_broker_adds_are_left_out() -> None:
    """RabbitMQ may be told to add when, and by which node, a message came."""
    made = signatures()
    added = {**HEADERS, "timestamp_in_ms": 1, "x-routed-by": "node"}
    assert check(made, made.sign(*SIGNED), ("queue", "[1]", added, b"body")) == HEADERS


NO_SIGNATURES = [None, 1, "", "no JSON", "[]", "[1, 2, 3]", '["test", "é", []]', '["test", "", [1]]', '["", "", null]']


@pytest.mark.parametrize("signature", NO_SIGNATURES)
def test_what_is_no_signature_is_none(signature: object) -> None:
    assert check(signatures(), signature) is None


def test_a_key_of_another_store_signs_nothing_here() -> None:
    theirs = signatures(lambda: Ring([Key("test", bytes(range(32)))]))
    assert check(signatures(), theirs.sign(*SIGNED)) is None


def test_a_key_that_is_not_valid_any_more_recognises_events_only() -> None:
    old, event = signatures(), ("exchange:orders", "row", "1", "shop", b"")
    seal, key = old.seal(*event)
    made = signatures(lambda: Ring([Key("new", bytes(range(32))), *(one._replace(valid=False) for one in ring().keys)]))
    assert check(made, old.sign(*SIGNED)) is None
    assert made.is_sealed(seal, key, *event)
    assert not made.is_sealed(seal, key, "exchange:orders", "row", "2", "shop", b"")


def test_an_unknown_key_is_looked_for_but_not_again_and_again() -> None:
    read: list[None] = []

    def keys() -> Ring:
        read.append(None)
        return ring()

    made, theirs = signatures(keys), signatures(lambda: Ring([Key("other", bytes(32))]))
    made._looked = float("-inf")
    for _ in range(100):
        assert check(made, theirs.sign(*SIGNED)) is None
    assert len(read) == 2


def test_a_forged_message_names_no_user_of_the_broker() -> None:
    """Its dead letter is a message of another program when it is retried, and its source may be that user."""
    copy = Copy("1", Message("1", "shop", "orders", b"", headers={"amqp-user-id": "erp"}), "shop.accept")
    sent = properties(copy, 1.0, "other", signatures())
    found = delivery("shop.accept", "store", sent, b"", 1, "", "queue", signatures())
    assert found is not None and found.refused
    assert found.message.headers == {}


def test_no_text_of_a_key_shows_its_secret() -> None:
    key = Key("id", b"secret-secret")
    assert "secret" not in f"{key} {key!r} {Ring([key])!r} {[key]}"


# ------------------------------------------------------------ the store


@pytest.fixture
def store(database_url: str) -> Iterator[Any]:
    made: Any = open_store(Settings(database_url=database_url), check=False)
    made.schema.upgrade()
    with closing(made):
        yield made


def test_a_key_signs_when_all_workers_know_it(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = store.keyring.read().keys
    new = store.keyring.rotate(3600)
    assert [key.id for key in store.keyring.read().keys] == [first.id, new]
    monkeypatch.setattr(keyring, "KNOWN_SECONDS", 0.0)
    found = store.keyring.read().keys
    assert [(key.id, key.valid) for key in found] == [(new, True), (first.id, True)]
    assert len({key.secret for key in found}) == 2
    assert [one.signs for one in store.keyring.states()] == [True, False]


def test_a_key_that_others_know_is_ended_at_once(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "HANDOVER_SECONDS", 0.0)
    (first,) = store.keyring.read().keys
    store.keyring.rotate(3600)
    store.keyring.rotate(0)
    valid = {key.id: key.valid for key in store.keyring.read().keys}
    assert (len(valid), sum(valid.values()), valid[first.id]) == (3, 1, False)


def test_a_copy_that_is_a_store_of_its_own_has_other_keys(store: Any) -> None:
    """Else it would take events of the other store for its own, and drop them."""
    (first,) = store.keyring.read().keys
    store.place.adopt(apart=True)
    (other,) = store.keyring.read().keys
    assert first.id != other.id
    assert first.secret != other.secret


def test_a_store_of_the_version_before_takes_unsigned_messages_for_a_time(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(database_url, "0006")
    settings = Settings(database_url=database_url)
    with closing(open_store(settings, check=False)) as store:
        store.schema.upgrade()
        assert store.keyring.read().lenient
        assert store.keyring.unsigned() == pytest.approx(keyring.DRAIN_SECONDS, abs=60)
        older = "INSERT INTO flowkit_workers (id, app, host, pid, started, heartbeat, state, locked) VALUES"
        with store.dialect.engine.connect() as connection:
            connection.execute(text(f"{older} ('old', 'shop', 'here', 1, 1, 4102444800000000, 'ready', 0)"))
            connection.execute(text("UPDATE flowkit_meta SET value = '1' WHERE name = 'unsigned'"))
            connection.commit()
        assert store.keyring.read().lenient, "an older worker is there"
        assert store.keyring.unsigned() == pytest.approx(keyring.DRAIN_SECONDS, abs=60), "the time begins with its end"
        with pytest.raises(ConfigError, match=r"1 worker\(s\) of an older version are there and sign nothing"):
            store.keyring.require()
        store.fleet.leave("old")
        assert store.keyring.read().lenient
        with store.dialect.engine.connect() as connection:
            connection.execute(text("UPDATE flowkit_meta SET value = '1' WHERE name = 'unsigned'"))
            connection.commit()
        assert not store.keyring.read().lenient
        assert store.keyring.unsigned() is None
    monkeypatch.setattr(tables, "VERSION", "0006")
    with pytest.raises(ConfigError, match=r"has FlowKit schema 0007, and this version needs 0006"):
        open_store(settings)
    monkeypatch.undo()
    with closing(open_store(settings, check=False)) as store:
        store.schema.upgrade()
        assert not store.keyring.read().lenient, "an upgrade takes nothing back"


def test_a_store_of_this_version_takes_no_unsigned_message(store: Any) -> None:
    assert not store.keyring.read().lenient


def test_commands_show_keys_without_their_secrets(
    store: Any, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", database_url)
    monkeypatch.delenv("FLOWKIT_BROKER_URL", raising=False)
    keys.rotate("2d")
    keys.show_list(False)
    keys.show_list(True)
    keys.require()
    said = capsys.readouterr().out
    for key in store.keyring.read().keys:
        assert key.id in said
        assert key.secret.hex() not in said
    assert "signs in 1m; the keys before it verify for 2d2m" in said


def test_a_refused_message_of_a_flow_that_is_renamed_is_a_dead_letter(store: Any) -> None:
    """As a row it would be one of the store's own."""
    message = Message("order-1", "shop", "orders", b"")
    one = Delivery(message, "shop.accept", foreign=True, refused="it has no signature")
    store.subscribers.keep("shop.accept", [unread(received(one, "orders"))] * 2)
    (letter,) = store.dead_letters.read(store.dead_letters.select())
    assert (letter.reason, letter.error, letter.message.headers["ce-id"]) == (REFUSED, one.refused, "order-1")
    assert store.queue.due() == set()
    assert store.ledger.balances()["shop.accept"].balanced


def refuse(store: Any) -> str:
    """A message that claims to be of the store becomes a dead letter. Its id."""
    message = Message("order-1", "shop", "orders", b"")
    one = Delivery(message, "shop.accept", foreign=True, refused="it has no signature")
    store.subscribers.keep("shop.accept", [unread(received(one, "orders"))])
    (letter,) = store.dead_letters.select()
    return str(letter)


def test_a_rollback_does_not_retry_what_was_refused(store: Any) -> None:
    """It would be a message of another program then, and take effect though nobody has decided that."""
    store.rollouts.enter("shop", "v1", 1)
    store.rollouts.change("shop", ["shop.accept"], Rollout("v1", "v2", 50, epoch=1))
    store.version = "v2"
    assert refuse(store)
    assert store.dead_letters.of_version("shop", "v2") == []


def test_a_retry_of_what_was_refused_says_what_becomes_of_it(
    store: Any, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", database_url)
    letter = refuse(store)
    for chosen in ([letter], []):
        with pytest.raises(ConfigError, match=r"1 of them was refused.*applied again.*write --yes to do it"):
            dead.settle("retry", chosen, None, None, not chosen, False)
    assert store.dead_letters.select() == [letter]
    dead.settle("retry", [letter], None, None, False, True)
    said = capsys.readouterr()
    assert said.out == "1 of 1 dead letters: sent again\n"
    assert "messages of another program" in said.err


def test_a_key_is_held_for_the_longest_retention_of_an_app(
    store: Any, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A true message that waited longer than its key would be refused."""
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", database_url)
    store.keyring.note("shop", 30 * DAY)
    store.keyring.note("billing", 10 * DAY)
    for hold in (14 * DAY, 1.0):
        with pytest.raises(ConfigError, match=r"for 30d \(App\(retention=\)\).*write --hold 30d.*--hold 0s"):
            store.keyring.rotate(hold)
    assert len(store.keyring.states()) == 1
    keys.rotate("")
    assert store.keyring.states()[1].left == pytest.approx(30 * DAY, abs=300)
    store.keyring.rotate(0)
    assert store.keyring.states()[1].left == pytest.approx(0, abs=300), "somebody else knows it"
    store.keyring.note("shop", 20 * DAY)
    store.keyring.rotate(20 * DAY)


def test_unsigned_messages_are_taken_for_the_longest_retention_of_an_app(store: Any) -> None:
    with store.transaction() as unit:
        unit.write("INSERT INTO flowkit_meta (name, value) VALUES ('unsigned', '')", [()])
    assert store.keyring.read().lenient
    assert store.keyring.unsigned() == pytest.approx(14 * DAY, abs=60)
    store.keyring.note("shop", 30 * DAY)
    assert store.keyring.unsigned() == pytest.approx(30 * DAY, abs=60)
    with store.transaction() as unit:
        unit.write("UPDATE flowkit_meta SET value = '1' WHERE name = 'unsigned'", [()])
    assert not store.keyring.read().lenient


def test_a_key_that_ends_before_a_message_may_is_told_of(store: Any) -> None:
    """The app's retention was made longer after the keys were rotated."""
    app = App("shop", retention="30d")
    services = Services(Settings(broker_url="amqp://localhost"), store, SqlTransport(store, 30))
    alone = services._replace(settings=Settings())
    store.keyring.rotate(14 * DAY)
    (told,) = doubts(app, services)
    assert re.match(r"key \w+ verifies for 14d.* more, and App\(retention='30d'\) lets messages wait longer", told)
    assert doubts(App("shop"), services) == doubts(app, alone) == []
    note(app, alone)
    store.keyring.rotate(14 * DAY)
    note(app, services)
    with pytest.raises(ConfigError):
        store.keyring.rotate(14 * DAY)


def test_what_is_not_ours_is_not_handed_on_to_another_version(store: Any) -> None:
    app = new_app("shop")
    services = Services(Settings(), store, SqlTransport(store, 30))
    versions = Versions(store, app.context(services), "shop", "2", 30, 3600)
    one = Delivery(Message("order-1", "shop", "orders", b""), "shop.accept@candidate", staged=time.time())
    assert versions.can_go(one)
    assert not versions.can_go(one._replace(foreign=True)), "as a row it would be one of the store's own"


@pytest.mark.parametrize("source", ["shop", "shop.note", "shop/alice", "billing", "billing.accept", "billing/alice"])
def test_a_source_that_is_a_name_of_ours_is_moved_aside(source: str) -> None:
    """Of this app, of a client of its routes, and of another app of the store."""
    one = Delivery(Message("order-1", source, "orders", b""), "shop.accept", foreign=True)
    aside = "foreign" if source in ("shop", "shop.note") else f"foreign:{source}"
    assert received(one, "orders", {"billing"}).message.source == aside


@pytest.mark.parametrize("source", ["shopping", "/shop", "erp/shop", "urn:shop", "billings.accept"])
def test_a_source_that_is_none_of_ours_stays(source: str) -> None:
    one = Delivery(Message("order-1", source, "orders", b""), "shop.accept", foreign=True)
    assert received(one, "orders", {"billing"}).message.source == source


# ------------------------------------------------------------ the broker


@pytest.fixture
def site(tmp_path: Path, rabbitmq_url: str) -> Iterator[Site]:
    with closing(Site("shop", f"orders-{time.time_ns()}", tmp_path, rabbitmq_url)) as made:
        yield made


@pytest.fixture
def attacker(rabbitmq_url: str) -> Iterator[Supplier]:
    with closing(Supplier(rabbitmq_url)) as made:
        yield made


def address(site: Site, flow: str = "shop.accept") -> str:
    return Queues(site.store.identity()).name(flow)


def put(attacker: Supplier, queue: str, headers: dict[str, Any], body: bytes) -> None:
    attacker.channel.basic_publish("", queue, body, BasicProperties(message_id="x", headers=headers), mandatory=True)


def taken(site: Site, attacker: Supplier, name: str) -> tuple[str, dict[str, Any], bytes]:
    """Publish a message, and take it from the queue of the flow: its id, its headers and its body."""
    worker = Worker(site.app, connect(site.settings))
    for lane in worker.lanes:
        lane.consumer.close()
    id = site.app.publish(site.orders, Order(name=name), headers=HEADERS)
    while worker.relay.step():
        pass
    worker.relay.flush()
    came = [attacker.get(address(site)) for _ in range(2)]  # the copy, and the event that the exchange gave back
    found, body = next(one for one in came if "flowkit-mac" in (one[0].headers or {}))
    worker.close()
    worker.services.close()
    headers: dict[str, Any] = dict(found.headers or {})
    headers.pop("x-delivery-count", None)
    return id, headers, body


def generation(headers: dict[str, Any]) -> dict[str, Any]:
    envelope = json.loads(headers["flowkit"])
    envelope[1] = 1000
    return {"flowkit": json.dumps(envelope, separators=(",", ":"))}


FORGED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "unsigned": lambda headers: {"flowkit-mac": None},
    "of a later generation": generation,
    "another header": lambda headers: {"tenant": "red"},
    "another key": lambda headers: {"flowkit-mac": signatures().sign("queue", headers["flowkit"], HEADERS, b"")},
}


def refused(site: Site) -> int:
    letters = list(site.store.dead_letters.read(site.store.dead_letters.select()))
    assert {letter.reason for letter in letters} <= {REFUSED}, [tuple(letter) for letter in letters]
    return len(letters)


@pytest.mark.rabbitmq
def test_nobody_else_makes_or_changes_a_message_of_ours(site: Site, attacker: Supplier) -> None:
    id, headers, body = taken(site, attacker, "a")
    forged = [{**headers, **change(headers)} for change in FORGED.values()]
    with site.worker():
        for one in forged:
            put(attacker, address(site), one, body)
        put(attacker, address(site), headers, b'{"name": "b"}')
        put(attacker, address(site), headers, b"no JSON")
        wait_until(lambda: refused(site) == 3)  # one of each body that claims to be the same message
        assert site.seen == []
        assert id, "none of them took its identity"
        put(attacker, address(site), headers, body)
        wait_until(lambda: site.effects() == {"a": 1})
        put(attacker, address(site), headers, body)  # once more
        put(attacker, address(site), forged[1], body)
        site.rest()
    assert site.effects() == {"a": 1}
    assert [(one.id, one.source, dict(one.headers)["tenant"]) for one in site.seen] == [(id, "shop", "blue")]


@pytest.mark.rabbitmq
def test_no_other_program_takes_an_id_of_another_app_of_the_store(site: Site, attacker: Supplier) -> None:
    """Also of one that only publishes."""
    site.store.subscribers.add({"billing.accept": "bills"})
    invoicing = App("invoicing")
    orders = invoicing.channel(site.orders.name, Order, optional=True)
    invoicing.connect(site.services)
    with site.worker():
        put(attacker, address(site), {"ce-id": "1", "ce-source": "billing"}, b'{"name": "a"}')
        put(attacker, address(site), {"ce-id": "1", "ce-source": "invoicing"}, b'{"name": "b"}')
        wait_until(lambda: site.effects() == {"a": 1, "b": 1})
        invoicing.publish(orders, Order(name="c"), id="1")
        wait_until(lambda: site.effects() == {"a": 1, "b": 1, "c": 1})
    assert {(one.id, one.source) for one in site.seen} == {
        ("1", "foreign:billing"),
        ("1", "foreign:invoicing"),
        ("1", "invoicing"),
    }


@pytest.mark.rabbitmq
def test_other_programs_put_nothing_into_the_queue_of_a_channel_of_our_own(site: Site, attacker: Supplier) -> None:
    ran: list[str] = []
    bills = site.app.channel("bills", Order)
    site.app.flow(bills, name="bill")(lambda order: ran.append(order.name))
    with site.worker():
        put(attacker, address(site, "shop.bill"), {"ce-id": "1", "ce-source": "erp"}, b'{"name": "a"}')
        wait_until(lambda: refused(site) == 1)
        site.app.publish(bills, Order(name="b"))
        wait_until(lambda: ran == ["b"])
    (letter,) = site.store.dead_letters.read(site.store.dead_letters.select())
    assert "straight into the queue of a flow whose channel is for this app alone" in letter.error


@pytest.mark.rabbitmq
def test_what_strangers_put_into_a_queue_of_our_own_stays_refused_when_its_flow_is_renamed(
    site: Site, attacker: Supplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    bills = site.app.channel("bills", Order)
    site.app.flow(bills, name="bill")(lambda order: None)
    with site.worker():
        pass
    put(attacker, address(site, "shop.bill"), {"ce-id": "1", "ce-source": "erp"}, b'{"name": "a"}')
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", site.settings.database_url)
    monkeypatch.setenv("FLOWKIT_BROKER_URL", site.settings.broker_url)
    wait_until(lambda: site.services.transport.depths(["shop.bill"])["shop.bill"] == 1)
    move("shop.bill", "shop.invoice")
    assert site.store.queue.due() == set(), "no handler runs for it"
    assert refused(site) == 1


@pytest.mark.rabbitmq
def test_only_the_broker_says_how_often_a_message_was_handed_out(site: Site, attacker: Supplier) -> None:
    """Else whoever may publish lets every message run alone, as one that has killed its process."""
    transport: Any = site.services.transport
    transport.declare(["shop.accept"], [Shared(site.orders.name, ["shop.accept"], False)])
    consumer = transport.consumer("shop.accept", "worker", 10)
    attacker.send(site.orders.name, b"", headers={"x-delivery-count": 1000})
    for handed_out in (1, 2):
        wait_until(lambda: consumer.stocked)
        (one,) = consumer.receive(10)
        assert one.deliveries == handed_out
        consumer.release([one])
    consumer.close()


@pytest.mark.rabbitmq
def test_what_is_in_hand_goes_back_when_the_keys_cannot_be_read(
    rabbitmq_url: str, attacker: Supplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the broker waits for it for good, and sends nothing more to this flow after a few of such times."""
    monkeypatch.setattr(signature, "AGAIN_SECONDS", 0.0)
    away: list[FlowKitError] = []

    def keys() -> Ring:
        if away:
            raise away[0]
        return ring()

    flow, exchange = "shop.accept", f"orders-{time.time_ns()}"
    with closing(RabbitTransport(rabbitmq_url, new_id(), SystemClock(), lambda: 0.0, keys=keys)) as transport:
        transport.declare([flow], [Shared(exchange, [flow], False)])
        consumer = transport.consumer(flow, "worker", 10)
        (sent,) = transport.send([Copy("1", Message("1", "shop", exchange, b""), EXCHANGE + exchange)])
        assert sent.confirmed
        copy = properties(Copy("2", Message("2", "shop", exchange, b""), flow), 1.0, "other", signatures())
        unknown = {**dict(copy.headers or {}), "flowkit-mac": '["unknown", "", []]'}
        put(attacker, transport._queues.name(flow), unknown, b"")
        wait_until(lambda: len(consumer._buffer) == 2)
        away.append(StoreUnavailable("the database is away"))
        with pytest.raises(StoreUnavailable):
            consumer.receive(10)
        away.clear()
        wait_until(lambda: len(consumer._buffer) == 2)
        came = consumer.receive(10)
        assert [one.message.id for one in came] == ["2"]
        consumer.settle(came)
        wait_until(lambda: not consumer._unsettled, 10)


@pytest.mark.rabbitmq
def test_a_true_copy_counts_in_its_own_queue_only(site: Site, attacker: Supplier, tmp_path: Path) -> None:
    """Here a message for the queue of another store."""
    _, headers, body = taken(site, attacker, "a")
    url = site.settings.broker_url
    with closing(Site("billing", f"bills-{time.time_ns()}", tmp_path, url)) as other, other.worker():
        put(attacker, address(other, "billing.accept"), headers, body)
        wait_until(lambda: refused(other) == 1)
        assert other.seen == []
        other.rest()


@pytest.mark.rabbitmq
def test_a_refused_message_that_is_retried_is_one_of_another_program(site: Site, attacker: Supplier) -> None:
    id, headers, body = taken(site, attacker, "a")
    with site.worker():
        put(attacker, address(site), {**headers, "flowkit-mac": ""}, body)
        wait_until(lambda: refused(site) == 1)
        site.store.dead_letters.retry(site.store.dead_letters.select())
        wait_until(lambda: site.effects() == {"a": 1})
        put(attacker, address(site), headers, body)  # the true one took no harm
        wait_until(lambda: site.effects() == {"a": 2})
    assert {(one.id, one.source) for one in site.seen} == {(id, "foreign"), (id, "shop")}


@pytest.mark.rabbitmq
def test_messages_are_taken_while_keys_are_rotated(
    site: Site, attacker: Supplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "KNOWN_SECONDS", 0.0)
    monkeypatch.setattr(keyring, "HANDOVER_SECONDS", 0.0)
    _, old, body = taken(site, attacker, "a")
    with site.worker():
        site.store.keyring.rotate(3600)
        put(attacker, address(site), old, body)
        wait_until(lambda: site.effects() == {"a": 1})
    _, new, body = taken(site, attacker, "b")
    assert json.loads(old["flowkit-mac"])[0] != json.loads(new["flowkit-mac"])[0]
    site.store.keyring.rotate(0)
    with site.worker():
        put(attacker, address(site), new, body)
        wait_until(lambda: refused(site) == 1)
    assert site.effects() == {"a": 1}


@pytest.mark.rabbitmq
def test_messages_of_the_version_before_come_to_their_end(site: Site, attacker: Supplier) -> None:
    """Some lie in the queue, older workers send others, and all can read those of this version."""
    with site.store.transaction() as unit:
        unit.write("INSERT INTO flowkit_meta (name, value) VALUES ('unsigned', '')", [()])
    site.services.transport.declare(["shop.accept"], [Shared(site.orders.name, ["shop.accept"], False)])

    def old(name: str, row: str) -> None:
        body = Order(name=name).model_dump_json().encode()
        copy = Copy(row, Message(f"id-{name}", "shop", site.orders.name, body), "shop.accept")
        made: dict[str, Any] = dict(properties(copy, time.time(), "", signatures()).headers or {})
        del made["flowkit-mac"]
        put(attacker, address(site), made, body)

    for name in ("a", "b"):
        old(name, "1")
    queue = attacker.subscribe(site.orders.name)
    with site.worker():
        old("c", "2")
        old("a", "3")  # sent again by an older worker
        site.app.publish(site.orders, Order(name="d"))
        wait_until(lambda: site.effects() == {"a": 1, "b": 1, "c": 1, "d": 1})
        found, _ = attacker.get(queue)
        assert site.store.identity() in str(found.headers), "as the version before knows its own"
    site.store.keyring.require()
    with site.worker():
        old("e", "4")
        wait_until(lambda: refused(site) == 1)
        site.app.publish(site.orders, Order(name="f"))
        found, _ = attacker.get(queue)
        assert site.store.identity() not in str(found.headers)
        wait_until(lambda: site.effects() == {"a": 1, "b": 1, "c": 1, "d": 1, "f": 1})


# ------------------------------------------------------------ who sent it


def test_a_source_that_nobody_names_is_refused_as_it_is_defined() -> None:
    for shared, source_from, why in (
        (True, "app_id", r"source_from is 'app_id'; write source_from=.user_id."),
        (False, "user_id", "its source is no shared channel"),
    ):
        app = new_app("shop")
        options: Any = {"source_from": source_from}
        app.flow(app.channel("orders", Order, shared=shared), name="accept", **options)(lambda order: None)
        with pytest.raises(DefinitionError, match=why):
            app.check()


@pytest.mark.rabbitmq
def test_the_user_of_the_broker_is_the_source(tmp_path: Path, rabbitmq_url: str, attacker: Supplier) -> None:
    name = f"orders-{time.time_ns()}"
    user = urlsplit(rabbitmq_url).username
    with closing(Site("shop", name, tmp_path, rabbitmq_url, source_from="user_id")) as site:
        with site.worker():
            claim = {"ce-id": "1", "ce-source": "erp"}
            attacker.send(name, b'{"name": "a"}', headers={**claim, "amqp-user-id": "erp"})
            attacker.send(name, b'{"name": "b"}', headers={**claim, "ce-source": "user:erp"})
            attacker.send(name, b'{"name": "c"}', headers={**claim, "amqp-user-id": "erp"}, user_id=user)
            wait_until(lambda: site.effects() == {"c": 1} and len(site.outcomes) == 3)
            site.rest()
        letters = list(site.store.dead_letters.read(site.store.dead_letters.select()))
    assert [(one.id, one.source) for one in site.seen] == [("1", f"user:{user}")]
    assert len(letters) == 2
    assert all(
        "knows who sent a message by its user_id (source_from=), and it has none" in one.error for one in letters
    )
    attacker.channel.confirm_delivery()
    with pytest.raises(ChannelClosedByBroker, match="user_id property set to 'erp' but authenticated user was"):
        attacker.send(name, b"", user_id="erp")
