"""Under which identity a message takes effect once, and what becomes of another one under the same."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy.orm import Session

from flowkit import App, Reused, UnitOfWork
from flowkit.message import UNREAD, Message, check_headers
from flowkit.ports import Copy, Dead, Done, Duplicate
from flowkit.testing import Harness
from tests.support.shop import Effect, new_app, once, running

pytestmark = pytest.mark.migrated

FLOW = "shop.accept"


class Number(BaseModel):
    n: int


class Lenient(BaseModel):
    """What a later version of the app reads: the field may have either name."""

    n: int | None = None
    oops: int | None = None

    @property
    def number(self) -> int | None:
        return self.oops if self.n is None else self.n


def strict_app(**options: Any) -> App:
    app = new_app()

    @app.flow(app.channel("numbers", Number, shared=True), **options)
    def accept(number: Number, db: Session) -> None:
        db.add(Effect(name=str(number.n)))

    return app


def lenient_app(**options: Any) -> App:
    app = new_app()

    @app.flow(app.channel("numbers", Lenient, shared=True), **options)
    def accept(number: Lenient, message: Message, db: Session) -> None:
        db.add(Effect(name=str(number.number)))

    return app


def arrive(harness: Harness, *bodies: bytes, id: str = "17", headers: dict[str, str] | None = None) -> None:
    """Messages of another program, all under one id."""
    for body in bodies:
        harness.broker.deliver(FLOW, Message(id, "erp", "", body, headers=headers or {}))
    harness.until_quiet()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def kept_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that outlives a harness."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/kept.db"
    url: str = request.getfixturevalue("postgresql_url")
    return url


# ------------------------------------------------------------ what cannot be read


def test_what_cannot_be_read_takes_the_id_of_no_other_message(database_url: str) -> None:
    with running(strict_app(id_from="n"), database_url, broker=True) as harness:
        arrive(harness, b'{"oops": 1}', b'{"n": 17}')
        once(harness, "17")
        (letter,) = harness.dead()
        assert letter.message.body == b'{"oops": 1}'
        assert (letter.message.headers["ce-id"], letter.message.headers["ce-source"]) == ("17", "erp")


@pytest.mark.parametrize("id_from", [None, "n"])
def test_each_body_that_cannot_be_read_is_a_dead_letter_of_its_own(database_url: str, id_from: str | None) -> None:
    bodies = [b'{"oops": %d}' % number for number in range(5)]
    with running(strict_app(id_from=id_from), database_url, broker=True) as harness:
        arrive(harness, *bodies, bodies[2], id="1")
        arrive(harness, *bodies, id="1")
        assert sorted(letter.message.body for letter in harness.dead()) == bodies
        arrive(harness, b'{"n": 1}', id="1")
        once(harness, "1")


def test_a_validator_that_breaks_leaves_no_id_behind() -> None:
    """What has no id cannot be tried again: the next try would be another message."""

    def broken(number: Number) -> str:
        raise KeyError("number")

    with running(strict_app(id_from=broken), "sqlite:///:memory:", broker=True) as harness:
        arrive(harness, b'{"n": 1}', b'{"n": 2}')
        assert [letter.error for letter in harness.dead()] == [
            "Undecodable: its id cannot be found: KeyError: 'number'; mend id_from=, and retry it"
        ] * 2


@pytest.mark.parametrize("id_from", [None, lambda number: number.number])
@pytest.mark.parametrize("broker", [False, True])
def test_a_retried_dead_letter_finds_its_id_anew(kept_url: str, broker: bool, id_from: Any) -> None:
    with running(strict_app(id_from=None if id_from is None else "n"), kept_url, broker=True) as harness:
        arrive(harness, b'{"oops": 17}')
        assert len(harness.dead()) == 1
    with running(lenient_app(id_from=id_from), kept_url, broker=broker) as harness:
        letters = harness.store.dead_letters
        letters.retry(letters.select())
        assert harness.balances()[FLOW].balanced, "also while it waits"
        harness.until_quiet()
        once(harness, "17")
        balance = harness.balances()[FLOW]
        assert (balance.accepted, balance.applied, balance.dead, balance.reused) == (1, 1, 0, 0)
        if broker:
            arrive(harness, b'{"n": 17}')
            once(harness, "17")
            balance = harness.balances()[FLOW]
            assert (balance.accepted, balance.applied, balance.reused) == (1, 1, 1)


def test_a_retried_dead_letter_is_not_applied_beside_the_good_one(
    kept_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with running(strict_app(id_from="n"), kept_url, broker=True) as harness:
        arrive(harness, b'{"oops": 17}', b'{"n": 17}')
        once(harness, "17")
    with running(lenient_app(id_from=lambda number: number.number), kept_url) as harness:
        letters = harness.store.dead_letters
        letters.retry(letters.select())
        harness.until_quiet()
        once(harness, "17")
        assert [type(outcome) for _, _, outcome in harness.outcomes] == [Duplicate]
        balance = harness.balances()[FLOW]
        assert (balance.accepted, balance.applied, balance.dead, balance.reused) == (1, 1, 0, 1)
    assert any("message 17: duplicate: Reused: " in record.message for record in caplog.records)


def test_what_still_cannot_be_read_is_dead_again(kept_url: str) -> None:
    with running(strict_app(id_from="n"), kept_url, broker=True) as harness:
        arrive(harness, b'{"oops": 17}')
        letters = harness.store.dead_letters
        for _ in range(3):
            letters.retry(letters.select())
            harness.broker.duplicate(FLOW)
            harness.until_quiet()
            (letter,) = harness.dead()
            assert letter.message.headers["ce-id"] == "17"
        letters.discard(letters.select())
        arrive(harness, b'{"oops": 17}')
        assert harness.dead() == []


@pytest.mark.parametrize("headers", [[1], {"ce-id": 7}, {"ce-id": "1", "ce-source": UNREAD}, {}])
def test_a_message_that_only_claims_to_be_such_a_letter_has_an_end(headers: Any) -> None:
    forged = Message("sha256-0", UNREAD, "numbers", b'{"n": 17}', headers=headers)
    with Harness(strict_app(), "sqlite:///:memory:", broker=True) as harness:
        harness.broker.send([Copy("", forged, FLOW)])
        harness.broker.deliver(FLOW, forged)
        harness.until_quiet()
        ends = {type(outcome) for _, _, outcome in harness.outcomes}
        assert ends <= {Done, Dead, Duplicate}
        assert all(message.source != UNREAD for _, message, outcome in harness.outcomes if isinstance(outcome, Done))
        assert harness.balances()[FLOW].balanced


# ------------------------------------------------------------ one id, two bodies


def test_an_async_flow_keeps_the_same_rules(database_url: str) -> None:
    app = new_app()

    @app.flow(app.channel("numbers", Number, shared=True), id_from="n")
    async def accept(number: Number, work: UnitOfWork) -> None:
        await work.run(lambda db, outbox: db.add(Effect(name=str(number.n))))

    with running(app, database_url, broker=True) as harness:
        arrive(harness, b'{"oops": 17}', b'{"n": 17}', b'{"n":17}', id="17")
        arrive(harness, b'{"n": 17 }', b'{"n": 17}', id="17")
        once(harness, "17")
        assert [letter.message.headers["ce-id"] for letter in harness.dead()] == ["17"]
        assert harness.balances()[FLOW].reused == 2


@pytest.mark.parametrize("alone", [False, True])
def test_a_duplicate_with_another_body_is_told_and_counted(
    database_url: str, alone: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with running(strict_app(id_from=lambda number: "same"), database_url, broker=True) as harness:
        for bodies in [[b'{"n": 1}'], [b'{"n": 1}', b'{"n": 2}']] if alone else [[b'{"n": 1}', b'{"n": 2}']]:
            arrive(harness, *bodies)
        once(harness, "1")
        assert {type(outcome) for _, _, outcome in harness.outcomes} == {Done, Duplicate}
        assert harness.balances()[FLOW].reused == 1
    told = [record.message for record in caplog.records if "Reused" in record.message]
    assert told == [
        f"flow {FLOW}: message same: duplicate: Reused: this id came before with another body, which alone counts; "
        "if both are meant, let id_from= name what tells them apart"
    ]


@pytest.mark.parametrize("source", ["shop", "shop.other"])
def test_a_stranger_takes_no_identity_of_the_app(database_url: str, source: str) -> None:
    app = strict_app()
    with running(app, database_url, broker=True) as harness:
        harness.broker.deliver(FLOW, Message("order-1", source, "", b'{"n": 1}'))
        harness.until_quiet()
        harness.publish(app.channels["numbers"], Number(n=2), id="order-1")
        harness.until_quiet()
        once(harness, "1", "2")


def plain_app() -> App:
    app = new_app()

    @app.flow(app.channel("numbers", Number))
    def accept(number: Number, db: Session) -> None:
        db.add(Effect(name=str(number.n)))

    return app


def test_row_a2_one_id_for_two_bodies_is_refused_by_name(database_url: str) -> None:
    with running(plain_app(), database_url) as harness:
        harness.publish("numbers", Number(n=1), id="order-1")
        with pytest.raises(Reused, match="channel numbers: message order-1 was accepted before with another body"):
            harness.publish("numbers", Number(n=2), id="order-1")
        harness.publish("numbers", Number(n=1), id="order-1")
        harness.until_quiet()
        harness.publish("numbers", Number(n=1), id="order-1")
        with pytest.raises(Reused):
            harness.publish("numbers", Number(n=2), id="order-1")
        harness.until_quiet()
        once(harness, "1")


def test_row_a2_many_are_refused_together(database_url: str) -> None:
    """Also if both bodies come at once."""
    with running(plain_app(), database_url) as harness:
        numbers = [Number(n=number) for number in range(4)]
        for ids in (["a", "b", "c", "a"], ["1", "2", "3", "a"]):
            with pytest.raises(Reused, match="message a "):
                harness.app.publish_many("numbers", numbers, ids=ids)
            harness.publish("numbers", Number(n=9), id="a")
        assert harness.app.publish_many("numbers", numbers[:2] * 2, ids=["1", "2", "1", "2"]) == 4
        harness.until_quiet()
        once(harness, "9", "0", "1")


def test_row_a2_a_session_is_told_as_well_and_goes_on(database_url: str) -> None:
    with running(plain_app(), database_url) as harness:
        engine = harness.store.dialect.engine.execution_options(isolation_level="SERIALIZABLE")
        with Session(engine) as session:
            outbox = harness.app.outbox(session)
            outbox.send("numbers", Number(n=1), id="order-1")
            with pytest.raises(Reused, match="message order-1"):
                outbox.send("numbers", Number(n=2), id="order-1")
            outbox.send("numbers", Number(n=1), id="order-1")
            session.add(Effect(name="mine"))
            session.commit()
        with pytest.raises(Reused):
            harness.publish("numbers", Number(n=2), id="order-1")
        harness.until_quiet()
        once(harness, "1", "mine")


def test_row_a2_what_an_older_version_accepted_may_be_sent_again(database_url: str) -> None:
    """It noted no digest: the body is taken to be the same, as it was then."""
    with running(plain_app(), database_url) as harness:
        harness.publish("numbers", Number(n=1), id="order-1")
        with harness.store.transaction() as unit:
            unit.write("UPDATE flowkit_inbox SET digest = ''", [()])
        harness.publish("numbers", Number(n=1), id="order-1")
        harness.until_quiet()
        once(harness, "1")


# ------------------------------------------------------------ faults of the envelope


def test_a_retried_dead_letter_without_an_id_keeps_its_source(kept_url: str) -> None:
    with running(strict_app(id_from="n"), kept_url, broker=True) as harness:
        arrive(harness, b'{"oops": 17}', id="")
    with running(lenient_app(id_from=lambda number: number.number), kept_url, broker=True) as harness:
        letters = harness.store.dead_letters
        letters.retry(letters.select())
        arrive(harness, b'{"n": 17}', id="")
        once(harness, "17")


FAULTS: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"id": "a\x00b"}, {"ce-id": "a\\x00b", "ce-source": "erp", "tenant": "blue"}),
    ({"id": "a\ud800"}, {"ce-id": "a\\xd800", "ce-source": "erp", "tenant": "blue"}),
    ({"id": 7}, {"ce-id": "7", "ce-source": "erp", "tenant": "blue"}),
    ({"id": "x" * 10_000}, {"ce-id": "x" * 10_000, "ce-source": "erp", "tenant": "blue"}),
    ({"source": "e\nrp"}, {"ce-source": "e\\x0arp", "tenant": "blue"}),
    ({"key": ["a"]}, {"ce-source": "erp", "tenant": "blue"}),
    (
        {"headers": {"tenant": "b\nlue", "ok": "ö"}},
        {"ce-source": "erp", "tenant": "b\\x0alue", "ok": "ö"},
    ),
    ({"headers": {"n\r" * 200: 7}}, {"ce-source": "erp", "n\\x0d" * 40 + "… (400 characters)": "7"}),
    ({"headers": [1]}, {"ce-source": "erp", "headers": "[1]"}),
]


@pytest.mark.parametrize("foreign", [False, True])
def test_a_dead_letter_for_a_fault_of_the_envelope_keeps_its_id_and_headers(database_url: str, foreign: bool) -> None:
    good = Message("", "erp", "numbers", b'{"n": 1}', "Number", "k", headers={"tenant": "blue"}, correlation="c")
    with Harness(strict_app(), database_url, broker=True) as harness:
        for number, (changed, _) in enumerate(FAULTS):
            message = good._replace(id=f"id-{number}")._replace(**changed)
            if foreign:
                harness.broker.deliver(FLOW, message)
            else:
                harness.broker.send([Copy("", message, FLOW)])
            harness.until_quiet()
        letters = harness.dead()
        expected = [{"ce-id": f"id-{number}"} | kept for number, (_, kept) in enumerate(FAULTS)]
        assert [dict(letter.message.headers) for letter in letters] == expected
        assert {letter.message.id[:7] for letter in letters} == {"sha256-"}
        assert {(letter.message.type, letter.message.correlation) for letter in letters} == {("Number", "c")}
        assert {letter.message.key for letter in letters} == {"k", None}


def test_headers_that_are_too_large_are_kept_as_far_as_they_fit(database_url: str) -> None:
    headers = {f"h{number:02}": "ö" * 5_000 for number in range(30)}
    with running(strict_app(), database_url, broker=True) as harness:
        arrive(harness, b'{"n": 1}', headers=headers)
        (letter,) = harness.dead()
    kept = check_headers(letter.message.headers)
    assert list(kept)[:3] == ["ce-id", "ce-source", "h00"]
    assert len(kept) == 17
    assert kept["h00"] == "ö" * 2048 + "… (5,000 characters)"


def test_a_retry_of_what_had_a_bad_header_takes_effect_under_its_own_id(kept_url: str) -> None:
    with running(strict_app(id_from="n"), kept_url, broker=True) as harness:
        arrive(harness, b'{"n": 17}', headers={"tenant": "b\nlue"})
        letters = harness.store.dead_letters
        letters.retry(letters.select())
        harness.until_quiet()
        arrive(harness, b'{"n": 17}')
        once(harness, "17")
        assert harness.dead() == []
        assert harness.outcomes[1][1].headers["tenant"] == "b\\x0alue"
