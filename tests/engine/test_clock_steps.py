"""The database's clock is set while messages wait by it."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from flowkit.engine.worker import Worker
from flowkit.message import new_id
from flowkit.ports import Copy, WorkerInfo
from flowkit.services import Services, SystemClock
from flowkit.services import open_store as open_configured
from flowkit.settings import Settings
from flowkit.store.sqlite import open_store
from flowkit.testing.conformance import FLOW, message
from flowkit.transports.sql.transport import SqlTransport
from tests.support.shop import Order, new_app
from tests.support.waiting import wait_until

HOUR = 3600.0
DELAY = 600.0
NEAR = 30.0
"""A step is known to so many seconds here: the machine may be busy."""


class SetClock(SystemClock):
    """A clock that can be set, beside a monotonic one that cannot."""

    def __init__(self) -> None:
        self.by = 0.0

    def now(self) -> float:
        return time.time() + self.by


class Clocked(NamedTuple):
    """A store and how to set the clock of its database, by so many seconds."""

    open: Callable[[], Any]
    turn: Callable[[float], None]


@pytest.fixture
def sqlite(sqlite_url: str) -> Clocked:
    clock = SetClock()

    def turn(by: float) -> None:
        clock.by += by

    return Clocked(lambda: open_store(sqlite_url, clock), turn)


@pytest.fixture
def server(postgresql_url: str) -> Clocked:
    """A real server whose clock_timestamp() is another one."""
    store = open_configured(Settings(database_url=postgresql_url), check=False)
    store.schema.upgrade()
    store.close()
    engine = create_engine(make_url(postgresql_url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")

    def run(*statements: str) -> None:
        with engine.connect() as connection:
            for one in statements:
                connection.execute(text(one))
        engine.dispose()

    run(
        "CREATE SCHEMA set",
        "CREATE TABLE set.clock AS SELECT 0.0 AS seconds",
        "CREATE FUNCTION set.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS "
        "'SELECT pg_catalog.clock_timestamp() + make_interval(secs => seconds) FROM set.clock'",
        f"ALTER DATABASE {make_url(postgresql_url).database} SET search_path = public, set, pg_catalog",
    )
    return Clocked(
        lambda: open_configured(Settings(database_url=postgresql_url)),
        lambda by: run(f"UPDATE set.clock SET seconds = seconds + ({by})"),
    )


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.postgresql)])
def clocked(request: pytest.FixtureRequest) -> Clocked:
    found: Clocked = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def store(clocked: Clocked) -> Iterator[Any]:
    store = clocked.open()
    yield store
    store.close()


def info(group: str = "") -> WorkerInfo:
    return WorkerInfo(new_id(), "shop", "host", 1, group)


def joined(store: Any) -> str:
    """A worker that has beaten once."""
    who = info()
    store.fleet.join(who)
    store.fleet.beat(who.id, "ready")
    return who.id


def stage(store: Any, delay: float = 0.0) -> str:
    copy = Copy(new_id(), message(), FLOW, delay=delay)
    store.subscribers.add({FLOW: "kit.channel"})
    with store.unit(FLOW) as unit:
        unit.stage([copy])
        unit.commit()
    return copy.row


def is_due(store: Any, row: str) -> None:
    """This row is due, and no other one, within the time that a step is known to."""
    found: list[str | None] = []

    def leased() -> bool:
        found.extend(one.row for one in store.queue.lease(FLOW, 10, "me", 30))
        return bool(found)

    wait_until(leased)
    assert found == [row]


def waits(store: Any, row: str) -> float:
    """How many seconds a row still waits."""
    with store.unit("") as unit:
        (due,) = ({copy: due for copy, due in unit.read("SELECT copy, due FROM flowkit_messages")}[row],)
    return float(due / 1e6 - store.now())


def test_row_f23_what_was_due_stays_due_and_what_waits_keeps_its_time(
    clocked: Clocked, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    worker, other = joined(store), joined(store)
    held = stage(store)
    store.queue.lease(FLOW, 1, "frozen", 30)
    due, delayed = stage(store), stage(store, DELAY)
    clocked.turn(-HOUR)
    fresh = stage(store, DELAY)
    with caplog.at_level(logging.WARNING):
        for beating in (worker, other, worker):
            store.fleet.beat(beating, "ready")
    is_due(store, due)
    assert waits(store, delayed) == pytest.approx(DELAY, abs=NEAR), "moved once, whoever saw it"
    assert waits(store, fresh) == pytest.approx(DELAY, abs=NEAR), "it was staged by the new time"
    assert waits(store, held) < 30 + NEAR
    assert caplog.text.count("the clock of the database was set back by 36") == 1
    assert all(-2 < one.silent < NEAR and -2 < one.started < NEAR for one in store.ledger.workers())


def test_row_f23_what_waited_for_long_and_was_due_is_due(clocked: Clocked, store: Any) -> None:
    worker, row = joined(store), stage(store)
    with store.transaction() as unit:
        unit.write("UPDATE flowkit_messages SET staged = staged - 100000000000", [()])
    clocked.turn(-HOUR)
    store.fleet.beat(worker, "ready")
    is_due(store, row)


def test_row_f23_a_clock_that_was_set_back_while_no_worker_ran_is_noticed_by_the_next(clocked: Clocked) -> None:
    before = clocked.open()
    joined(before)
    due, delayed = stage(before), stage(before, DELAY)
    before.close()
    clocked.turn(-HOUR)
    after = clocked.open()
    fresh = stage(after, DELAY)
    joined(after)
    is_due(after, due)
    assert [waits(after, row) for row in (delayed, fresh)] == pytest.approx([DELAY, DELAY], abs=NEAR)
    after.close()


def test_row_f23_a_clock_that_went_forward_is_told_of_and_moves_nothing(
    clocked: Clocked, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    worker, delayed, later = joined(store), stage(store, DELAY), stage(store, 2 * HOUR)
    clocked.turn(HOUR)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            store.fleet.beat(worker, "ready")
    assert caplog.text.count("the clock of the database went forward by 36") == 1
    is_due(store, delayed)
    assert store.queue.lease(FLOW, 10, "me", 30) == []
    assert waits(store, later) == pytest.approx(HOUR, abs=NEAR)


def test_row_f23_a_group_takes_over_after_the_clock_was_set_back(clocked: Clocked, store: Any) -> None:
    worker = joined(store)
    assert store.groups.stand("kit", "one", 1, ready=True).group == "one"
    assert store.groups.stand("other", "three", 60, ready=True).seconds == pytest.approx(60, abs=NEAR)
    with store.transaction(fenced=False) as unit:
        assert unit.read(store.dialect.statements.elect, ("cleaner:kit", "dead", 60_000_000))
    clocked.turn(-HOUR)
    store.fleet.beat(worker, "ready")
    assert store.groups.standing("other").seconds == pytest.approx(60, abs=NEAR)
    wait_until(lambda: store.groups.stand("kit", "two", 60, ready=True).group == "two")


def test_row_f23_times_of_being_up_do_not_end_before_they_begin(clocked: Clocked, store: Any) -> None:
    worker = joined(store)
    store.uptime.note("kit")
    clocked.turn(-HOUR)
    store.fleet.beat(worker, "ready")
    store.uptime.note("kit")
    ((since, until),) = store.uptime.read("kit", 2 * HOUR)
    assert -2 < since < NEAR
    assert 0 <= until < NEAR


def test_row_f23_a_worker_goes_on_though_its_clock_was_set_back(sqlite_url: str) -> None:
    clock, app = SetClock(), new_app()
    app.flow(app.channel("orders", Order))(lambda order: None)
    store = open_store(sqlite_url, clock)
    worker = Worker(app, Services(Settings(database_url=sqlite_url), store, SqlTransport(store, 30), clock))
    worker.maintenance.tick()
    app.publish("orders", Order(name="a"))
    clock.by -= HOUR
    end = time.monotonic() + 30
    while store.ledger.unfinished(list(app.flows)):
        assert time.monotonic() < end, "it is stuck"
        worker.step()
        time.sleep(0.05)
    worker.close()
    app.close()
