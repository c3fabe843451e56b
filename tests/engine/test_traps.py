"""The traps of the engine itself: rows 50 to 52, 61, 62 and 66 of the failures, on both stores."""

from collections import Counter
from collections.abc import Callable

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from flowkit import App, Channel, Objects, RetryPolicy
from flowkit.ports import Duplicate
from tests.support.breaches import driver_commit
from tests.support.shop import COMMIT, FAST, Effect, Order, Unique, new_app, once, running

pytestmark = pytest.mark.migrated

Deed = Callable[[Session], object]


@pytest.mark.parametrize(
    "deed",
    [
        pytest.param(lambda db: db.commit(), id="commit"),
        pytest.param(lambda db: db.rollback(), id="rollback"),
        pytest.param(lambda db: db.close(), id="close"),
        pytest.param(lambda db: db.connection().commit(), id="connection-commit"),
        pytest.param(lambda db: db.execute(COMMIT), id="sql-commit"),
        pytest.param(lambda db: db.execute(text("  /* no */ ROLLBACK")), id="sql-rollback"),
    ],
)
def test_row_50_a_handler_cannot_end_its_transaction(database_url: str, deed: Deed) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            deed(db)

    with running(app, database_url) as harness:
        for number in range(10):
            harness.publish(orders, Order(name=str(number), deed="x" if number == 4 else ""))
        harness.until_quiet()
        once(harness, *(str(number) for number in range(10) if number != 4))
        (letter,) = harness.dead()
        assert "TransactionEnded" in letter.error
        assert "remove the call" in letter.error


def test_row_50_going_round_by_the_driver_stops_the_flow_by_name(database_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            driver_commit(db)

    with running(app, database_url) as harness:
        for number in range(10):
            harness.publish(orders, Order(name=str(number), deed="x" if number == 4 else ""))
        harness.until_quiet()
        assert all("flow shop.accept is stopped" in lane.stopped for lane in harness.worker.lanes)
        balance = harness.balances()["shop.accept"]
        assert balance.accepted == 10 == balance.applied + balance.dead + balance.pending
        assert balance.pending == 5, "those that had not run are given back"
        assert balance.dead == 1, "it ran alone once it had the driver in hand, and its effects are unknown"


def test_row_50_a_commit_and_a_begin_by_the_driver_are_noticed_too(database_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        driver_commit(db)
        driver = db.connection().connection.driver_connection
        assert driver is not None
        driver.execute("BEGIN")

    with running(app, database_url) as harness:
        harness.publish(orders, Order(name="a"))
        harness.until_quiet()
        assert "flow shop.accept is stopped" in harness.worker.lanes[0].stopped


def test_row_51_a_swallowed_database_error_is_blamed_on_its_message(database_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            db.add(Unique(name="there"))
            try:
                db.flush()
            except IntegrityError:
                """Swallowed: the transaction is gone, and the handler does not say so."""

    with running(app, database_url) as harness:
        with harness.session() as session:
            session.add(Unique(name="there"))
            session.flush()
        for number in range(10):
            harness.publish(orders, Order(name=str(number), deed="x" if number == 4 else ""))
        harness.until_quiet()
        harness.advance("1s")
        harness.advance("1s")
        once(harness, *(str(number) for number in range(10) if number != 4))
        (letter,) = harness.dead()
        assert letter.message.body == b'{"name":"4","deed":"x"}'
        assert letter.attempts == 3


def test_row_52_a_deferred_constraint_costs_only_its_culprit(database_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        db.execute(text("INSERT INTO children (parent) VALUES (:parent)"), {"parent": 2 if order.deed else 1})

    with running(app, database_url) as harness:
        with harness.session() as session:
            session.execute(text("CREATE TABLE parents (id INTEGER PRIMARY KEY)"))
            session.execute(
                text("CREATE TABLE children (parent INTEGER REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)")
            )
            session.execute(text("INSERT INTO parents VALUES (1)"))
        for number in range(20):
            harness.publish(orders, Order(name=str(number), deed="x" if number == 13 else ""))
        harness.until_quiet()
        harness.advance("1s")
        harness.advance("1s")
        once(harness, *(str(number) for number in range(20) if number != 13))
        (letter,) = harness.dead()
        assert letter.attempts == 3


def test_row_61_broker_duplicates_times_retries_run_the_allowed_attempts() -> None:
    app = new_app()
    orders = app.channel("orders", Order)
    runs: Counter[str] = Counter()

    @app.flow(orders, retry=FAST)
    def accept(order: Order) -> None:
        runs[order.name] += 1
        raise ValueError("always")

    with running(app, "sqlite:///:memory:", broker=True) as harness:
        for number in range(5):
            harness.publish(orders, Order(name=str(number)))
        for _ in range(6):
            harness.worker.relay.step()
            harness.broker.duplicate("shop.accept")
            harness.broker.disconnect()
            harness.advance("1s")
        assert runs == {str(number): 3 for number in range(5)}
        assert len(harness.dead()) == 5
        assert harness.broker.duplicates > 0
        assert any(isinstance(outcome, Duplicate) for _, _, outcome in harness.outcomes)


def test_row_62_an_idle_lane_leaves_nothing_to_the_relay() -> None:
    app = new_app()
    orders, next_orders = app.channel("orders", Order), app.channel("next", Order)
    app.flow(orders, to=next_orders, name="first")(lambda order: order)

    @app.flow(next_orders)
    def second(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    with running(app, "sqlite:///:memory:", broker=True) as harness:
        for number in range(50):
            harness.publish(orders, Order(name=str(number)))
        harness.until_quiet()
        harness.advance("5m")
        assert not any(isinstance(outcome, Duplicate) for _, _, outcome in harness.outcomes)
        assert harness.store.ledger.pending(["shop.first", "shop.second"]) == (0, 0)
        once(harness, *map(str, range(50)))


def test_row_62_a_lost_confirm_is_sent_again_and_applied_once() -> None:
    app = new_app()
    orders, next_orders = app.channel("orders", Order), app.channel("next", Order)
    app.flow(orders, to=next_orders, name="first")(lambda order: order)

    @app.flow(next_orders)
    def second(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    with running(app, "sqlite:///:memory:", broker=True) as harness:
        harness.broker.drop_confirms = True
        for number in range(20):
            harness.publish(orders, Order(name=str(number)))
        harness.until_quiet()
        harness.broker.drop_confirms = False
        harness.advance("5m")
        once(harness, *map(str, range(20)))
        assert any(isinstance(outcome, Duplicate) for _, _, outcome in harness.outcomes), "none was sent again"


def test_row_66_a_failed_message_leaves_no_row_of_its_own(database_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            raise ValueError(order.deed)

    with running(app, database_url) as harness:
        for number in range(10):
            harness.publish(orders, Order(name=str(number), deed="bad" if number in (0, 7) else ""))
        harness.until_quiet()
        once(harness, *(str(number) for number in range(10) if number not in (0, 7)))
        harness.advance("1s")
        harness.advance("1s")
        assert [letter.attempts for letter in harness.dead()] == [3, 3]


def by_session(app: App, orders: Channel[Order]) -> None:
    @app.flow(orders, retry=FAST, name="accept")
    def accept(order: Order, db: Session) -> None:
        db.execute(text("INSERT INTO effects (name) VALUES (:name)"), {"name": order.name})
        if order.deed:
            raise ValueError(order.deed)


def by_connection(app: App, orders: Channel[Order]) -> None:
    @app.flow(orders, retry=FAST, name="accept")
    def accept(order: Order, db: Connection) -> None:
        db.execute(text("INSERT INTO effects (name) VALUES (:name)"), {"name": order.name})
        if order.deed:
            raise ValueError(order.deed)


def by_objects(app: App, orders: Channel[Order]) -> None:
    @app.flow(orders, retry=FAST, name="accept")
    def accept(order: Order, objects: Objects, db: Connection) -> None:
        if order.deed:
            objects.put("bad", order.name)
            raise ValueError(order.deed)
        assert objects.get("bad") is None, "what a failed neighbour put is seen"
        db.execute(text("INSERT INTO effects (name) VALUES (:name)"), {"name": order.name})


@pytest.mark.parametrize("way", [by_session, by_connection, by_objects])
def test_row_66_however_it_writes_a_failed_message_leaves_nothing(
    database_url: str, way: Callable[[App, Channel[Order]], None]
) -> None:
    app = new_app()
    orders = app.channel("orders", Order)
    way(app, orders)
    with running(app, database_url) as harness:
        app.publish_many(
            orders, [Order(name=str(number), deed="bad" if number in (0, 7) else "") for number in range(10)]
        )
        harness.until_quiet()
        for _ in range(3):
            harness.advance("1s")
        once(harness, *(str(number) for number in range(10) if number not in (0, 7)))
        assert [letter.stack.splitlines()[-1] for letter in harness.dead()] == ["ValueError: bad"] * 2
        with harness.store.unit("") as unit:
            assert unit.read("SELECT * FROM flowkit_objects") == []


def test_row_66_a_failure_without_the_database_does_not_run_its_neighbours_again(database_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)
    runs: Counter[str] = Counter()

    @app.flow(orders, retry=RetryPolicy(attempts=2, first="1h"))
    def accept(order: Order, db: Session) -> None:
        runs[order.name] += 1
        if order.deed:
            raise ValueError("before it touched the database")
        db.add(Effect(name=order.name))

    with running(app, database_url) as harness:
        for number in range(10):
            harness.publish(orders, Order(name=str(number), deed="bad" if number == 5 else ""))
        harness.until_quiet()
        assert runs == {str(number): 1 for number in range(10)}


@pytest.mark.parametrize("isolate", ["batch", "savepoint", "single"])
def test_an_attempt_of_a_single_message_is_one_run(database_url: str, isolate: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)
    runs: Counter[str] = Counter()

    @app.flow(orders, retry=FAST, isolate=isolate)  # type: ignore[arg-type]
    def accept(order: Order, db: Session) -> None:
        runs[order.name] += 1
        db.add(Effect(name=order.name))
        raise ValueError("always")

    with running(app, database_url) as harness:
        harness.publish(orders, Order(name="a"))
        for _ in range(5):
            harness.advance("1s")
        assert runs == {"a": 3}
        once(harness)


def test_objects_are_kept_with_the_transaction_and_end_with_their_time(database_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)
    seen: dict[str, object] = {}

    @app.flow(orders, retry=FAST)
    def accept(order: Order, objects: Objects) -> None:
        seen.setdefault(order.name, objects.get("last"))
        objects.put("last", {"name": order.name}, ttl="1h")
        if order.deed == "delete":
            objects.delete("last")
        if order.deed == "fail":
            raise ValueError("what it put is undone")

    with running(app, database_url) as harness:
        for name, deed in (("a", ""), ("b", "fail"), ("c", ""), ("d", "delete"), ("e", "")):
            harness.publish(orders, Order(name=name, deed=deed))
            harness.until_quiet()
        assert seen == {"a": None, "b": {"name": "a"}, "c": {"name": "a"}, "d": {"name": "c"}, "e": None}
        if database_url.startswith("sqlite"):
            harness.advance("2h")
            with harness.store.unit("") as unit:
                assert unit.read("SELECT * FROM flowkit_objects") == [], "the cleaner removed it"
