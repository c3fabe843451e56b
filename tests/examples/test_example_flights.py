"""The flights example: its data, its handlers one by one, its flows in memory, and the demo with a killed worker."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import date

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from examples.flights import data, direct, flows
from flowkit import Reject
from flowkit.testing import Harness
from tests.support import ROOT

NEW_YEAR = date(2013, 1, 1)
ROW = {"year": "2013", "month": "1", "day": "1", "dep_time": "517", "dep_delay": "2", "carrier": "UA", "flight": "1545"}
LATE = flows.Flown(carrier="MQ", number=3944, day=NEW_YEAR, delay=853)
EARLY = flows.Flown(carrier="MQ", number=3795, day=NEW_YEAR, delay=-6)
CANCELLED = flows.Flight(carrier="EV", number=4308, day=NEW_YEAR, delay=None)


@pytest.fixture
def db() -> Iterator[Session]:
    engine = create_engine("sqlite://")
    flows.Base.metadata.create_all(engine)
    with Session(engine) as session:
        yield session
    engine.dispose()


def test_the_data_is_january_2013() -> None:
    rows = list(data.rows())
    assert len(rows) == 27_004
    assert {(row["year"], row["month"]) for row in rows} == {("2013", "1")}
    assert {row["carrier"] for row in rows} == set(data.carriers())
    assert data.carriers()["UA"] == "United Air Lines Inc."


def test_the_direct_computation_finds_every_flight() -> None:
    results = direct.compute(data.rows())
    assert (results.flown, results.cancelled) == (26_483, 521)
    assert len(results.alerts) == 593
    assert len(results.days) == 460


def test_the_direct_computation_of_three_rows() -> None:
    cancelled = ROW | {"dep_time": "NA", "dep_delay": "NA"}
    assert direct.compute([ROW, ROW | {"dep_delay": "121"}, cancelled]) == direct.Results(
        days={("UA", NEW_YEAR): direct.Day(flown=2, cancelled=1, delay=123, most=121)},
        alerts=[direct.Late("UA", 1545, NEW_YEAR, 121)],
    )


def test_validate_makes_a_flight_of_a_row() -> None:
    flight = flows.validate(flows.Row.model_validate(ROW))
    assert flight == flows.Flight(carrier="UA", number=1545, day=NEW_YEAR, delay=2)


def test_validate_makes_a_cancelled_flight_of_a_row_without_departure() -> None:
    row = flows.Row.model_validate(ROW | {"dep_time": "NA", "dep_delay": "NA"})
    assert flows.validate(row).delay is None


@pytest.mark.parametrize(
    ("wrong", "why"), [({"month": "2", "day": "30"}, "no such day"), ({"dep_time": "NA"}, "both a time and a delay")]
)
def test_validate_rejects_what_cannot_be(wrong: dict[str, str], why: str) -> None:
    row = flows.Row.model_validate(ROW | wrong)
    with pytest.raises(Reject, match=why):
        flows.validate(row)


def test_split_routes_by_whether_the_flight_left() -> None:
    left, stayed = flows.split(flows.Flight(**dict(EARLY))), flows.split(CANCELLED)
    assert (left.channel, left.value, left.key) == (flows.flown, EARLY, "MQ 2013-01-01")
    assert (stayed.channel, stayed.value, stayed.key) == (flows.cancelled, CANCELLED, "EV 2013-01-01")


def test_statistics_adds_up_and_returns_late_flights_only(db: Session) -> None:
    assert flows.statistics(EARLY, db) is None
    assert flows.statistics(LATE, db) == LATE
    assert flows.statistics(EARLY, db) is None
    row = db.scalars(select(flows.FlownDay)).one()
    assert (row.carrier, row.day, row.flights, row.delay, row.most) == ("MQ", NEW_YEAR, 3, 841, 853)


@pytest.mark.parametrize(("minutes", "alerts"), [(120, False), (121, True)])
def test_an_alert_is_more_than_two_hours(db: Session, minutes: int, alerts: bool) -> None:
    flight = flows.Flown(carrier="MQ", number=1, day=NEW_YEAR, delay=minutes)
    assert (flows.statistics(flight, db) is not None) == alerts


def test_cancellations_counts(db: Session) -> None:
    flows.cancellations(CANCELLED, db)
    flows.cancellations(CANCELLED, db)
    row = db.scalars(select(flows.CancelledDay)).one()
    assert (row.carrier, row.day, row.flights) == ("EV", NEW_YEAR, 2)


def test_alert_writes_a_row(db: Session) -> None:
    flows.alert(LATE, db)
    row = db.scalars(select(flows.Alert)).one()
    assert (row.carrier, row.number, row.day, row.delay) == ("MQ", 3944, NEW_YEAR, 853)


def test_the_flows_in_memory_lead_a_malformed_row_to_the_dead_letters() -> None:
    with Harness(flows.app) as harness:
        for row in (ROW, ROW | {"dep_delay": "121"}, ROW | {"dep_time": "NA", "dep_delay": "NA"}):
            harness.publish(flows.read, row)
        harness.publish(flows.read, ROW | {"dep_delay": "late"})
        harness.until_quiet()
        assert [letter.flow for letter in harness.dead()] == ["flights.validate"]
        assert "dep_delay" in harness.dead()[0].error
        assert [flight.delay for flight in harness.sent(flows.alerts)] == [121]
        assert all(balance.balanced for balance in harness.balances().values())
        with harness.session() as session:
            assert session.scalars(select(flows.FlownDay)).one().flights == 2
            assert session.scalars(select(flows.CancelledDay)).one().flights == 1


def demo(database_url: str | None, broker_url: str = "") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLOWKIT_")}
    if database_url is not None:
        environment["FLOWKIT_DATABASE_URL"] = database_url
    if broker_url:
        environment["FLOWKIT_BROKER_URL"] = broker_url
    return subprocess.run(
        [sys.executable, "-m", "examples.flights"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip


def check(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    killed = re.search(r"killed worker (\d+) \(SIGKILL\) while it held (\d+) messages", done.stdout)
    assert killed is not None, done.stdout
    pid, held = killed.groups()
    assert int(held) > 0
    assert f"killed worker {pid} held {held} messages: {held} were redelivered and applied" in done.stdout
    assert "27,004 flights, 521 of them cancelled" in done.stdout
    assert "the ledger balances: 81,605 accepted = 81,605 applied + 0 dead" in done.stdout
    assert re.search(r"United Air Lines Inc\. +│ +4,637 │ +32 ", done.stdout)
    assert done.stdout.endswith("compared with a plain loop over the same rows: equal\n")
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.processes
def test_the_demo_kills_a_worker_and_arrives_at_equal_results() -> None:
    check(demo(None))


@pytest.mark.processes
@pytest.mark.postgresql
def test_the_demo_on_rabbitmq(postgresql_url: str, rabbitmq_url: str) -> None:
    done = demo(postgresql_url, rabbitmq_url)
    assert "broker: amqp://flowkit:***@127.0.0.1" in done.stdout
    check(done)


@pytest.mark.processes
def test_the_demo_refuses_a_database_that_has_flights(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", sqlite_url)
    try:
        flows.app.publish(flows.read, ROW)
    finally:
        flows.app.close()
    done = demo(sqlite_url)
    assert done.returncode == 1
    assert "demo: the database has flights of an earlier run; let FLOWKIT_DATABASE_URL name an empty one" in done.stdout
