"""Hostile input: everything is accounted for, nothing escapes."""

import random
from typing import Any

import pytest
from sqlalchemy.orm import Session

from flowkit import (
    RetryPolicy,
)
from flowkit.message import Message, new_id
from flowkit.ports import Copy, Dead
from flowkit.testing import Harness
from tests.support.hostile import harnessed, harnessed_app
from tests.support.shop import Effect, Order, new_app, once, running


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
