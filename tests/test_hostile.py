"""Hostile input: everything is accounted for, nothing escapes."""

import asyncio
import random
import threading
from typing import Any

import pytest
from sqlalchemy.orm import Session

from flowkit import (
    App,
    DefinitionError,
    FlowKitError,
    OutcomeUnknown,
    RetryPolicy,
    StoreUnavailable,
    TooLarge,
    Unrouted,
)
from flowkit.errors import ConfigError, Undecodable
from flowkit.message import Message, new_id
from flowkit.ports import Copy, Dead
from flowkit.services import connect, open_store
from flowkit.settings import Settings
from flowkit.store.tables import VERSION
from flowkit.testing import Harness
from flowkit.url import mask
from tests.services.postgresql import PostgreSQL
from tests.services.proxy import Proxy
from tests.shop import Base, Effect, Order, new_app, once, running

COMMIT = b"COMMIT\0"
"""As the driver sends it; READ COMMITTED is not meant."""


def harnessed_app() -> App:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    return app


def harnessed(**options: Any) -> Harness:
    return Harness(harnessed_app(), **options)


def foreign(harness: Harness, *messages: Message) -> None:
    """What another producer put into the queue of the flow, past every check."""
    harness.broker.send([Copy(new_id(), one, "shop.accept") for one in messages])
    harness.until_quiet()


GOOD = Message("id-1", "east", "orders", b'{"name": "good"}')
BAD: dict[str, Message] = {
    "malformed JSON": GOOD._replace(body=b'{"name": '),
    "wrong type": GOOD._replace(body=b'{"name": 3}'),
    "missing field": GOOD._replace(body=b"{}"),
    "empty body": GOOD._replace(body=b""),
    "not UTF-8": GOOD._replace(body=b"\xff\xfe\x00"),
    "nested too deep": GOOD._replace(body=b"[" * 100_000),
    "empty id": GOOD._replace(id=""),
    "id with NUL": GOOD._replace(id="a\x00b"),
    "id with CR LF": GOOD._replace(id="a\r\nb"),
    "id with a surrogate": GOOD._replace(id="a\ud800"),
    "endless id": GOOD._replace(id="x" * 10_000),
    "id that is no text": GOOD._replace(id=7),  # type: ignore[arg-type]
    "key with NUL": GOOD._replace(key="\x00"),
    "header with LF": GOOD._replace(headers={"h": "a\nb"}),
    "header that is no text": GOOD._replace(headers={"h": 7}),  # type: ignore[dict-item]
    "headers that are none": GOOD._replace(headers=[1]),  # type: ignore[arg-type]
    "channel with NUL": GOOD._replace(channel="\x00"),
    "type that is no text": GOOD._replace(type=None),  # type: ignore[arg-type]
    "key that is no text": GOOD._replace(key=["a"]),  # type: ignore[arg-type]
    "time that no clock says": GOOD._replace(time=1e300),
    "time that is none": GOOD._replace(time="yesterday"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_decoded_is_dead_with_its_reason_and_once(name: str) -> None:
    with harnessed(broker=True) as harness:
        foreign(harness, BAD[name], GOOD._replace(id="good"), BAD[name])
        once(harness, "good")
        (letter,) = harness.dead()
        assert letter.reason == "undecodable"
        assert letter.error.startswith("Undecodable: ")
        assert letter.message.body == BAD[name].body


@pytest.mark.parametrize(
    "counts",
    [
        {"generation": 2**31 - 1},
        {"generation": -1},
        {"generation": "x"},
        {"attempts": 2**31 - 1},
        {"attempts": -(2**31)},
        {"staged": 1e300},
        {"staged": "yesterday"},
    ],
)
def test_counts_that_cannot_be_are_dead_with_their_reason(counts: dict[str, Any], database_url: str) -> None:
    """And cannot count further than the databases do: the handler fails, so that it would be sent again."""
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.name != "other":
            raise ValueError("never")

    with Harness(app, database_url, broker=True) as harness:
        other = GOOD._replace(id="other", body=b'{"name": "other"}')
        harness.broker.send([Copy(new_id(), GOOD, "shop.accept")._replace(**counts), Copy("", other, "shop.accept")])
        harness.until_quiet()
        once(harness, "other")
        (letter,) = harness.dead()
        assert letter.reason == "undecodable"
        (wrong,) = counts
        assert letter.error.startswith(f"Undecodable: its {'time of staging' if wrong == 'staged' else wrong} is ")


def write_row(harness: Harness, **columns: Any) -> None:
    """A message row by SQL that knows nothing of FlowKit."""
    row = {
        "copy": new_id(), "flow": "shop.accept", "source": "east", "id": new_id(), "channel": "orders", "type": "",
        "body": b'{"name": "row"}', "time": 0, "generation": 0, "attempts": 0, "deliveries": 0, "staged": 0, "due": 0,
    } | columns  # fmt: skip
    marker = "%s" if harness.store.dialect.name == "postgresql" else "?"
    values = ", ".join([marker] * len(row))
    with harness.store.transaction() as unit:
        unit.write(f"INSERT INTO flowkit_messages ({', '.join(row)}) VALUES ({values})", [tuple(row.values())])


def beside_another(harness: Harness, **columns: Any) -> None:
    """Such a row, and a good message that shares its batch: both have their end."""
    write_row(harness, **columns)
    harness.publish("orders", Order(name="other"))
    harness.until_quiet()
    with harness.store.unit("") as unit:
        assert unit.read("SELECT copy FROM flowkit_messages") == []


@pytest.mark.parametrize("columns", [{"deliveries": 2**31 - 1}, {"deliveries": -5}, {"copy": ""}], ids=str)
def test_a_row_with_odd_columns_is_taken_as_it_comes(columns: dict[str, Any], database_url: str) -> None:
    with Harness(harnessed_app(), database_url) as harness:
        beside_another(harness, **columns)
        once(harness, "row", "other")


@pytest.mark.parametrize(
    "columns",
    [
        {"headers": "no JSON"},
        {"headers": "[" * 100_000},
        {"time": 2**63 - 1},
        {"time": -(2**63)},
        {"staged": -1},
        {"generation": 2**31 - 1},
        {"attempts": -(2**31)},
        {"channel": ""},
    ],
    ids=lambda columns: str(columns)[:40],
)
def test_a_row_that_is_no_message_is_dead_and_costs_itself_only(columns: dict[str, Any], database_url: str) -> None:
    with Harness(harnessed_app(), database_url) as harness:
        beside_another(harness, **columns)
        once(harness, "other")
        (letter,) = harness.dead()
        assert letter.reason == "undecodable"
        assert letter.message.body == b'{"name": "row"}'


@pytest.mark.parametrize(
    "columns",
    [
        {"headers": b"\xff"},
        {"key": b"\xff"},
        {"source": b"\xff"},
        {"body": "text"},
        {"body": 3},
        {"time": "yesterday"},
        {"staged": "yesterday"},
        {"generation": 1e300},
        {"attempts": "many"},
        {"id": 1.5, "type": b"Order"},
    ],
    ids=str,
)
def test_sqlite_keeps_columns_of_any_type_and_none_stops_a_flow(columns: dict[str, Any], sqlite_url: str) -> None:
    with Harness(harnessed_app(), sqlite_url) as harness:
        beside_another(harness, **columns)
        once(harness, "other")
        assert [letter.reason for letter in harness.dead()] == ["undecodable"]


@pytest.mark.parametrize("deliveries", ["many", 1.5, 1e300])
def test_sqlite_counts_deliveries_that_are_no_numbers(deliveries: Any, sqlite_url: str) -> None:
    with Harness(harnessed_app(), sqlite_url) as harness:
        beside_another(harness, deliveries=deliveries)
        once(harness, "row", "other")


def test_text_of_sqlite_that_is_no_utf8_stops_no_flow(sqlite_url: str) -> None:
    with Harness(harnessed_app(), sqlite_url) as harness:
        write_row(harness)
        with harness.store.transaction() as unit:
            unit.write("UPDATE flowkit_messages SET headers = CAST(? AS TEXT)", [(b'{"a": "\xff"}',)])
        harness.publish("orders", Order(name="other"))
        harness.until_quiet()
        once(harness, "other")
        assert "header a is '\\udcff'" in harness.dead()[0].error


def test_row_48_a_thousand_random_envelopes_are_all_accounted_for() -> None:
    chance = random.Random(48)
    texts = ["", "a", "\x00", "\n", "\ud800", "ü" * 300, "order-1", "id-1"]
    bodies = [b"", b"null", b"[]", b'{"name":"x"}', b'{"name":"\\u0000"}', b"\xff", b'{"name":1e999}', b"{" * 500]
    sent = []
    for number in range(1000):
        body = chance.choice(bodies)
        if chance.random() < 0.3:
            body = bytes(chance.randrange(256) for _ in range(chance.randrange(40)))
        id = chance.choice([f"id-{number}", chance.choice(texts)])
        headers: Any = chance.choice([{}, {"a": "b"}, {"": "b"}, {"a": "\r"}, {"a": None}, None, "text"])
        sent.append(
            Message(
                id, chance.choice(["east", *texts]), "orders", body, key=chance.choice([None, *texts]), headers=headers
            )
        )
    with harnessed(broker=True) as harness:
        foreign(harness, *sent)
        balance = harness.balances()["shop.accept"]
        assert harness.broker.depths(["shop.accept"])["shop.accept"] == 0
        assert balance.applied + balance.dead == sum(
            1 for _, _, outcome in harness.outcomes if type(outcome).__name__ in ("Done", "Dead")
        )
        assert len(harness.outcomes) == 1000
        assert all(
            isinstance(outcome, Dead) or type(outcome).__name__ in ("Done", "Duplicate")
            for *_, outcome in harness.outcomes
        )
        assert len(harness.dead()) == balance.dead > 100


def test_an_error_text_of_any_characters_is_kept(database_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def bad(order: Order) -> None:
        raise ValueError("NUL \x00, surrogate \ud800, and " + "long" * 10_000)

    with running(app, database_url) as harness:
        harness.publish(orders, Order(name="a"))
        harness.until_quiet()
        (letter,) = harness.dead()
        assert "ValueError: NUL \\0, surrogate \\ud800" in letter.error
        assert len(letter.error) < 2100


def test_row_24_a_body_over_the_limit_is_refused_at_the_send() -> None:
    app = new_app()
    app.max_body = 100
    raw = app.channel("raw", bytes)
    app.flow(raw, name="take")(lambda body: None)
    with running(app, "sqlite:///:memory:") as harness:
        harness.publish(raw, b"x" * 100)
        with pytest.raises(TooLarge, match=r"101 bytes to channel raw exceeds the limit of 100 bytes"):
            harness.publish(raw, b"x" * 101)
        harness.until_quiet()
        assert harness.balances()["shop.take"].applied == 1


def test_a_send_that_cannot_arrive_is_refused() -> None:
    with harnessed() as harness:
        app = harness.app
        with pytest.raises(DefinitionError, match="no channel nowhere; its channels are orders"):
            app.publish("nowhere", {})
        with pytest.raises(Unrouted, match="no flow subscribes to channel unheard"):
            app.publish(app.channel("unheard"), {})
        app.publish(app.channel("free", optional=True), {})
        with pytest.raises(DefinitionError, match=r"delay of 4d exceeds App\(max_delay='3d'\)"):
            app.publish("orders", Order(name="a"), delay="4d")
        for bad in ("", "a\nb", "x" * 300):
            with pytest.raises(Undecodable, match="id"):
                app.publish("orders", Order(name="a"), id=bad)
        with pytest.raises(Undecodable, match="header"):
            app.publish("orders", Order(name="a"), headers={"a": "b\r\nc"})
        with pytest.raises(Undecodable, match="headers are int; they must be a mapping"):
            app.publish("orders", Order(name="a"), headers=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("type", [str, Any])
def test_text_that_is_no_unicode_is_refused_by_its_channel(type: Any) -> None:
    with harnessed() as harness:
        texts = harness.app.channel("texts", type)
        with pytest.raises(TypeError, match=r"channel texts: str cannot be serialised: .*surrogates not allowed"):
            harness.publish(texts, "\ud800")


def test_a_header_whose_name_no_broker_takes_is_refused_at_the_send() -> None:
    """AMQP counts bytes, and names end at 255: accepted, it would wait for good."""
    with harnessed() as harness:
        harness.publish("orders", Order(name="a"), headers={"x" * 255: "v"})
        with pytest.raises(Undecodable, match=r"a header's name is 'üü.*at most 255 bytes"):
            harness.publish("orders", Order(name="b"), headers={"ü" * 128: "v"})


def test_a_refused_id_is_not_used_up() -> None:
    with harnessed() as harness:
        late = harness.app.channel("late", Order)
        with pytest.raises(Unrouted):
            harness.publish(late, Order(name="a"), id="order-1")
        harness.store.subscribers.add({"shop.accept": "late"})
        harness.publish(late, Order(name="a"), id="order-1")
        harness.until_quiet()
        once(harness, "a")


def test_many_messages_sent_again_under_their_ids_are_accepted_once() -> None:
    with harnessed() as harness:
        values = [Order(name=str(number)) for number in range(700)]
        ids = [f"order-{number}" for number in range(700)]
        assert harness.app.publish_many("orders", values[:600], ids[:600]) == 600
        assert harness.app.publish_many("orders", values, ids) == 700
        with pytest.raises(ValueError, match="shorter"):
            harness.app.publish_many("orders", values, ids[:3])
        harness.until_quiet()
        once(harness, *(one.name for one in values))


def test_an_unknown_outcome_carries_the_ids_to_send_again() -> None:
    assert OutcomeUnknown("a").id == "a"
    error = OutcomeUnknown("a", "b", "c")
    assert error.ids == ("a", "b", "c")
    assert "3 messages from a to c" in str(error)


def test_publishing_inside_a_handler_is_refused_by_name() -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def loud(order: Order) -> None:
        app.publish(orders, order)

    with running(app, "sqlite:///:memory:") as harness:
        harness.publish(orders, Order(name="a"))
        harness.until_quiet()
        assert "flow shop.loud published from inside its handler" in harness.dead()[0].error
        assert "outbox: Outbox" in harness.dead()[0].error


def test_callers_of_many_threads_share_commits_and_lose_nothing(database_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    store = open_store(Settings(database_url=database_url), check=False)
    store.schema.upgrade()
    Base.metadata.create_all(store.dialect.engine)
    store.close()
    services = connect(Settings(database_url=database_url))
    app.connect(services)
    unheard = app.channel("unheard")
    refused: list[BaseException] = []

    def publish(thread: int) -> None:
        for number in range(25):
            app.publish(orders, Order(name=f"{thread}-{number}"), id=f"{thread}-{number}")
            app.publish(orders, Order(name=f"{thread}-{number}"), id=f"{thread}-{number}")
            try:
                app.publish(unheard, {})
            except Unrouted as error:
                refused.append(error)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    asyncio.run(app.publish_async(orders, Order(name="async")))
    assert len(refused) == 200, "a wrong message costs its own caller, and no neighbour"
    app.close()
    with running(app, database_url) as harness:
        harness.until_quiet()
        once(harness, "async", *(f"{thread}-{number}" for thread in range(8) for number in range(25)))


@pytest.mark.parametrize("arrives", [True, False])
def test_a_publisher_cut_during_its_commit_sends_again_and_is_accepted_once(
    postgresql: PostgreSQL, postgresql_url: str, arrives: bool
) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    store = open_store(Settings(database_url=postgresql_url), check=False)
    store.schema.upgrade()
    with Proxy("127.0.0.1", postgresql.port) as proxy:
        through = postgresql.url(postgresql_url.rsplit("/", 1)[1], port=proxy.port)
        app.connect(connect(Settings(database_url=through)))
        proxy.cut_when(COMMIT, forward=arrives)
        with pytest.raises(OutcomeUnknown, match="send again with id=") as unknown:
            app.publish(orders, Order(name="a"))
        assert store.ledger.pending(["shop.accept"]).now == int(arrives)
        store.close()
        # The first one's id was made for it; the caller sends again under it.
        app.publish(orders, Order(name="a"), id=unknown.value.id)
        app.close()
    with running(app, postgresql_url) as harness:
        harness.until_quiet()
        once(harness, "a")
        assert harness.balances()["shop.accept"].accepted == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://h/d", "write sqlite:///path/to/file.db or"),
        ("nonsense", "write sqlite:///path/to/file.db or"),
        ("sqlite:////no/such/folder/x.db", "folder /no/such/folder does not exist"),
        ("sqlite:////dev", "cannot be used as a store"),
        ("sqlite:////proc/self/x.db", "cannot be used as a store"),
        ("postgresql://u:hidden-secret@127.0.0.1:1/d", "cannot be reached"),
    ],
)
def test_a_wrong_url_is_named_without_its_password(url: str, message: str) -> None:
    with pytest.raises((ConfigError, StoreUnavailable), match=message) as refused:
        connect(Settings(database_url=url))
    assert "FLOWKIT_DATABASE_URL" in str(refused.value)
    assert "hidden-secret" not in str(refused.value)


def test_a_wrong_password_database_or_schema_is_named(postgresql: PostgreSQL, postgresql_url: str) -> None:
    name = postgresql_url.rsplit("/", 1)[1]
    with pytest.raises(FlowKitError, match="password authentication failed") as refused:
        connect(Settings(database_url=f"postgresql://flowkit:hidden-secret@127.0.0.1:{postgresql.port}/{name}"))
    assert "hidden-secret" not in str(refused.value)
    with pytest.raises(FlowKitError, match="does not exist"):
        connect(Settings(database_url=postgresql.url("missing")))
    with pytest.raises(ConfigError, match=r"has no FlowKit schema.*flowkit db upgrade"):
        connect(Settings(database_url=postgresql_url))
    store = open_store(Settings(database_url=postgresql_url), check=False)
    store.schema.upgrade()
    with store.transaction() as unit:
        unit.write("UPDATE flowkit_version SET version_num = '0000'", [()])
    store.close()
    with pytest.raises(
        ConfigError, match=rf"has FlowKit schema 0000, and this version needs {VERSION}; run: flowkit db upgrade"
    ):
        connect(Settings(database_url=postgresql_url))


def test_a_database_that_may_lose_commits_is_refused(postgresql_url: str) -> None:
    store = open_store(Settings(database_url=postgresql_url), check=False)
    name = postgresql_url.rsplit("/", 1)[1]
    with store.transaction() as unit:
        unit.write(f"ALTER DATABASE {name} SET synchronous_commit = off", [()])
    store.close()
    with pytest.raises(ConfigError, match="synchronous_commit = off"):
        connect(Settings(database_url=postgresql_url))


@pytest.mark.parametrize(("name", "value"), [("THREADS", "0"), ("THREADS", "many"), ("LEASE", "-1"), ("LEASE", "")])
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"FLOWKIT_{name}", value)
    with pytest.raises(ConfigError, match=f"FLOWKIT_{name}"):
        Settings.read()


def test_a_broker_that_this_version_cannot_speak_to_is_refused(sqlite_url: str) -> None:
    with pytest.raises(ConfigError, match=r"FLOWKIT_BROKER_URL is redis://u:\*\*\*@h/"):
        connect(Settings(database_url=sqlite_url, broker_url="redis://u:secret@h/"))


@pytest.mark.parametrize("secret", ["plain", "with%40at", "p:q", "s/l", "ü"])
def test_passwords_are_masked(secret: str) -> None:
    shown = mask(f"postgresql://user:{secret}@host/db?password={secret}")
    assert secret not in shown.replace("postgresql://user", "")
    assert mask("sqlite:///flowkit.db") == "sqlite:///flowkit.db"
