"""What a handler may do wrong, and that the other messages of its batch and of its worker do not pay for it."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from flowkit import Message, Reject, RetryAfter, RetryPolicy
from flowkit.engine.in_flight import Slots, State
from flowkit.engine.worker import Worker
from flowkit.errors import StoreUnavailable
from flowkit.ports import Delivery
from flowkit.testing import Harness
from tests.support.shop import FAST, Effect, Order, effects, new_app, once, running

pytestmark = pytest.mark.migrated

Deed = Callable[[Session], object]
NAMES = [str(number) for number in range(10)]
CULPRIT = "4"
OTHERS = [name for name in NAMES if name != CULPRIT]


def publish(harness: Harness, channel: Any, names: list[str] = NAMES) -> None:
    for name in names:
        harness.publish(channel, Order(name=name, deed="x" if name == CULPRIT else ""))


@pytest.mark.parametrize("isolate", ["batch", "savepoint", "single"])
@pytest.mark.parametrize(
    "deed",
    [
        pytest.param(lambda db: db.expunge_all(), id="expunge-all"),
        pytest.param(lambda db: db.expire_all(), id="expire-all"),
        pytest.param(lambda db: db.expunge(next(iter(db.new))) if db.new else db.expunge_all(), id="expunge"),
    ],
)
def test_dropping_what_a_session_holds_drops_nothing_of_others(database_url: str, deed: Deed, isolate: Any) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, isolate=isolate)
    def accept(order: Order, db: Session) -> None:
        if order.deed:
            deed(db)
        db.add(Effect(name=order.name))

    with running(app, database_url) as harness:
        publish(harness, orders)
        harness.until_quiet()
        once(harness, *NAMES)


@pytest.mark.parametrize("isolate", ["batch", "savepoint", "single"])
@pytest.mark.parametrize(
    "deed",
    [
        pytest.param(lambda db: db.reset(), id="reset"),
        pytest.param(lambda db: db.invalidate(), id="invalidate"),
        pytest.param(lambda db: db.connection().invalidate(), id="connection-invalidate"),
        pytest.param(lambda db: db.begin(), id="begin"),
        pytest.param(lambda db: db.get_transaction().rollback(), id="session-transaction"),
        pytest.param(lambda db: db.connection().get_transaction().rollback(), id="connection-transaction"),
    ],
)
def test_row_50_undoing_the_transaction_in_other_words_is_blamed_on_its_message(
    database_url: str, deed: Deed, isolate: Any
) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, isolate=isolate, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            deed(db)

    with running(app, database_url) as harness:
        publish(harness, orders)
        harness.until_quiet()
        once(harness, *OTHERS)
        (letter,) = harness.dead()
        assert "TransactionEnded: the handler called" in letter.error


@pytest.mark.parametrize("isolate", ["savepoint", "single"])
def test_row_50_a_commit_by_the_driver_stops_the_flow_whatever_its_isolation(database_url: str, isolate: Any) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, isolate=isolate, concurrency=1)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            db.flush()
            driver: Any = db.connection().connection.driver_connection
            driver.commit()

    with running(app, database_url) as harness:
        publish(harness, orders)
        harness.until_quiet()
        assert "flow shop.accept is stopped" in harness.worker.lanes[0].stopped
        balance = harness.balances()["shop.accept"]
        assert balance.dead >= 1
        assert balance.pending == 5, "those that had not run are given back"


def test_a_flow_is_stopped_though_the_store_is_away_just_then(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, concurrency=1)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            db.flush()
            driver: Any = db.connection().connection.driver_connection
            driver.commit()

    with running(app, database_url) as harness:
        lane = harness.worker.lanes[0]
        pipeline, quarantine = lane.pipeline, lane.pipeline.quarantine

        def away(error: Any) -> Any:
            monkeypatch.setattr(pipeline, "quarantine", quarantine)
            raise StoreUnavailable("away")

        monkeypatch.setattr(pipeline, "quarantine", away)
        publish(harness, orders)
        with pytest.raises(StoreUnavailable):
            harness.until_quiet()
        assert not lane.stopped
        assert len(lane.in_flight) == 6, "what it had in hand is renewed meanwhile"
        harness.until_quiet()
        assert lane.stopped
        balance = harness.balances()["shop.accept"]
        assert (balance.applied, balance.dead, balance.pending) == (4, 1, 5), "it ran alone once it had the driver"


class Unsayable(Exception):
    def __str__(self) -> str:
        raise ValueError("not even this")


class Drastic(BaseException):
    pass


@pytest.mark.parametrize("error", [Unsayable(), RetryAfter("120"), RetryAfter(-1), Drastic(), GeneratorExit()])
def test_any_error_is_an_attempt_and_then_a_dead_letter(database_url: str, error: BaseException) -> None:
    app = new_app()
    orders = app.channel("orders", Order)
    runs: list[str] = []

    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            runs.append(order.name)
            raise error

    with running(app, database_url) as harness:
        publish(harness, orders)
        harness.until_quiet()
        for _ in range(3):
            harness.advance("1m")
        once(harness, *OTHERS)
        (letter,) = harness.dead()
        assert letter.attempts == FAST.attempts
        assert type(error).__name__ in letter.error or "RetryAfter(delay)" in letter.error


def test_an_error_that_cannot_be_recorded_is_recorded_as_that(database_url: str, monkeypatch: Any) -> None:
    """What the database refuses to write of a failure must not run again for ever."""
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, concurrency=1, retry=RetryPolicy(attempts=8))
    def accept(order: Order) -> None:
        raise Reject("no")

    with running(app, database_url) as harness:
        lane = harness.worker.lanes[0]
        stage, refusals = lane.pipeline.stage, []

        def refuse(unit: Any, items: Any) -> Any:
            if any(isinstance(item.error, Reject) for item in items):
                refusals.append(items)
                raise ValueError("the database takes no such text")
            return stage(unit, items)

        monkeypatch.setattr(lane.pipeline, "stage", refuse)
        harness.publish(orders, Order(name="a"))
        harness.until_quiet()
        for _ in range(10):
            harness.advance("10m")
        (letter,) = harness.dead()
        assert "refused to record" in letter.error or "the database takes no such text" in letter.error
        assert len(refusals) < 20


def test_row_33_a_failure_of_another_database_is_the_handlers_own(database_url: str) -> None:
    """Another database that is away is no reason to wait for ours."""
    app = new_app()
    orders = app.channel("orders", Order)
    away = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        db.flush()
        if order.deed:
            away.connect()

    with running(app, database_url) as harness:
        publish(harness, orders)
        harness.until_quiet()
        once(harness, *OTHERS)
        (letter,) = harness.dead()
        assert letter.reason == "failed"
        assert OperationalError.__name__ in letter.error


@pytest.mark.parametrize("how", ["raised", "wrapped", "swallowed"])
def test_row_33_a_collision_is_no_attempt_however_the_handler_takes_it(postgresql_url: str, how: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)
    runs = 0

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        nonlocal runs
        runs += 1
        if runs == 3:
            other.rollback()
        db.execute(text("SET LOCAL lock_timeout = '20ms'"))
        try:
            db.execute(text("LOCK TABLE uniques"))
        except DBAPIError as error:
            if how == "raised":
                raise
            if how == "wrapped":
                raise ValueError("the table is in use") from error
        db.add(Effect(name=order.name))

    with running(app, postgresql_url) as harness, Session(harness.store.dialect.engine) as other:
        other.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        other.execute(text("LOCK TABLE uniques"))
        harness.publish(orders, Order(name="a"))
        harness.until_quiet()
        assert runs == 3
        once(harness, "a")


def test_a_thread_that_dies_costs_its_worker_and_leaves_a_suspect(
    sqlite_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders)
    def accept(order: Order) -> None: ...

    def die(items: object) -> None:
        raise SystemExit

    with running(app, sqlite_url) as harness:
        slots = Slots()
        worker = Worker(app, harness.services, slots=slots)
        id = harness.publish(orders, Order(name="a"))
        monkeypatch.setattr(worker.lanes[0].pipeline, "settle", die)
        with caplog.at_level(logging.ERROR):
            thread = threading.Thread(target=worker.run)
            thread.start()
            thread.join(30)
        assert worker.crippled
        assert "a thread of this worker died" in caplog.text
        assert list(slots.in_flight()) == [(("shop.accept", "shop", id), State.RUNNING)]


def test_a_worker_that_cannot_give_back_leaves_nevertheless(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = new_app()
    orders = app.channel("orders", Order)
    closed: list[str] = []

    class Client:
        def __enter__(self) -> "Client":
            return self

        def __exit__(self, *_: object) -> None:
            closed.append("client")

    app.provide(Client, Client)

    @app.flow(orders)
    def accept(order: Order, message: Message, client: Client) -> None: ...

    with running(app, sqlite_url) as harness:
        worker = Worker(app, harness.services)

        def away() -> None:
            raise StoreUnavailable("away")

        monkeypatch.setattr(worker.lanes[0], "drain", away)
        with pytest.raises(StoreUnavailable):
            worker.close()
        assert closed == ["client"]
        assert worker.id not in [one.id for one in harness.store.ledger.workers()]
        with harness.session() as session:
            assert effects(session) == {}


def test_row_3_what_was_applied_elsewhere_meanwhile_leaves_nothing(sqlite_url: str) -> None:
    """A slow flow on SQLite claims with its first statement: it may have lost its message by then."""
    app = new_app()
    orders = app.channel("orders", Order)
    stolen: list[str] = []

    @app.flow(orders)
    def accept(order: Order, message: Message, db: Session) -> None:
        if not stolen:
            stolen.append(message.id)
            with harness.store.transaction() as thief:
                assert thief.claim([Delivery(message, "shop.accept")])
        try:
            db.add(Effect(name=order.name))
        except Exception:
            raise AssertionError("the handler must not see it") from None

    with Harness(app, sqlite_url) as harness:
        lane = harness.worker.lanes[0]
        lane.pipeline.paces.extend([1.0] * 31)
        publish(harness, orders)
        harness.until_quiet()
        once(harness, *NAMES[1:])
        assert [type(outcome).__name__ for _, _, outcome in harness.outcomes] == ["Duplicate"] + ["Done"] * 9
        assert not lane.stopped


def test_row_2_a_suspect_that_does_not_run_yet_stays_one(sqlite_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)
    ran: list[tuple[str, bool]] = []

    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        ran.append((order.name, bool(harness.worker.lanes[0].suspects)))
        db.add(Effect(name=order.name))

    with running(app, sqlite_url) as harness:
        lane = harness.worker.lanes[0]
        ids = [harness.publish(orders, Order(name=name)) for name in "abc"]
        harness.store.suspects.charge(("shop.accept", "shop", ids[1]), "gone", late=False)
        lane.step()
        assert [one.message.id for one in lane.suspects] == [ids[1]]
        with harness.store.unit("shop.accept") as unit:
            assert unit.read("SELECT suspect FROM flowkit_inbox WHERE flow = 'shop.accept' AND id = ?", (ids[1],)) == [
                (1,)
            ]
        harness.until_quiet()
        assert [name for name, _ in ran] == ["a", "c", "b"]
        once(harness, "a", "b", "c")
