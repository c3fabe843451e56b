"""Messages at a broker are signed: nobody else can make, change, or send elsewhere a message of the store's."""

import re
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import text

from flowkit import App
from flowkit.cli import dead, keys
from flowkit.engine.adoption import received, unread
from flowkit.engine.versions import Versions
from flowkit.errors import ConfigError
from flowkit.message import Message
from flowkit.operations.keys import doubts, note
from flowkit.ports import REFUSED, Copy, Delivery, Key, Ring, Rollout
from flowkit.services import Services, open_store
from flowkit.settings import Settings
from flowkit.store import keyring, tables
from flowkit.transports.rabbitmq.envelope import delivery, properties
from flowkit.transports.sql.transport import SqlTransport
from tests.support.keys import HEADERS, ring, signatures
from tests.support.migrations import at
from tests.support.shop import new_app

DAY = 86_400.0
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
