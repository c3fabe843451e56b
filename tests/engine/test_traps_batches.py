"""The traps of batches: rows 33, 35, 53 to 55, 67 and 68 of the failures, on both stores."""

import random
import threading
import time

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from flowkit import RetryPolicy
from flowkit.engine.triage import SOLO_BATCHES, SOLO_TRIES
from flowkit.engine.worker import Worker
from flowkit.services import connect, open_store
from flowkit.settings import Settings
from tests.conftest import PROOF
from tests.support.shop import Effect, Order, effects, new_app, once, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.migrated


def test_row_67_a_batch_given_up_half_way_loses_nothing(sqlite_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)
    services = connect(Settings(database_url=sqlite_url))
    batches: list[int] = []

    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        time.sleep(0.02)

    worker = Worker(app, services)
    (lane,) = worker.lanes
    lane.pipeline.observe = lambda items: batches.append(sum(item.outcome is not None for item in items))
    app.publish_many(orders, [Order(name=str(number)) for number in range(12)])
    while worker.step():
        """Until it is quiet."""
    with Session(services.store.dialect.engine) as session:  # type: ignore[attr-defined]
        assert effects(session) == {str(number): 1 for number in range(12)}
    assert batches[0] < 12, "the first batch must have met its time box"
    assert services.store.ledger.pending(["shop.accept"]) == (0, 0)
    worker.close()
    services.close()


@pytest.mark.postgresql
def test_row_67_a_drain_in_the_middle_of_a_batch_gives_the_rest_back(postgresql_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.name == "3":
            harness.worker.stop()

    with running(app, postgresql_url) as harness:
        harness.app.publish_many(orders, [Order(name=str(number)) for number in range(10)])
        harness.worker.step()
        once(harness, "0", "1", "2", "3")
        harness.worker.stopping.clear()
        harness.until_quiet()
        once(harness, *map(str, range(10)))


def test_row_35_a_redelivery_after_the_purge_is_flagged_and_not_applied() -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    with running(app, "sqlite:///:memory:", broker=True) as harness:
        harness.publish(orders, Order(name="a"))
        harness.worker.relay.step()
        harness.broker.duplicate("shop.accept")
        (first, second) = harness.broker.take("shop.accept", 2)
        harness.broker.reject([first])
        harness.until_quiet()
        harness.advance("15d")
        with harness.store.unit("") as unit:
            assert unit.read("SELECT 1 FROM flowkit_inbox WHERE flow = 'shop.accept'") == [], "the inbox forgot it"
        harness.broker.reject([second])
        harness.until_quiet()
        once(harness, "a")
        (letter,) = harness.dead()
        assert "older than App(retention='14d')" in letter.error
        harness.store.dead_letters.discard([letter.letter])
        with harness.store.transaction() as unit:
            unit.write("UPDATE flowkit_counters SET accepted = accepted + 1 WHERE applied > 0", [()])


def test_row_54_the_same_message_twice_in_a_batch_runs_once() -> None:
    app = new_app()
    orders = app.channel("orders", Order)
    runs: list[str] = []

    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        runs.append(order.name)
        db.add(Effect(name=order.name))

    with running(app, "sqlite:///:memory:", broker=True) as harness:
        harness.publish(orders, Order(name="a"))
        harness.worker.relay.step()
        harness.broker.duplicate("shop.accept")
        harness.broker.duplicate("shop.accept")
        harness.until_quiet()
        assert runs == ["a"]
        once(harness, "a")


def test_row_55_two_suppliers_may_both_send_order_1(database_url: str) -> None:
    suppliers = [new_app("east"), new_app("west")]
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    with running(app, database_url) as harness:
        for supplier in suppliers:
            channel = supplier.channel("orders", Order)
            supplier.connect(harness.services)
            supplier.publish(channel, Order(name=supplier.name), id="order-1")
            supplier.publish(channel, Order(name=supplier.name), id="order-1")
        harness.until_quiet()
        once(harness, "east", "west")


@pytest.mark.postgresql
def test_row_53_hot_rows_do_not_become_dead_letters(postgresql_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, concurrency=4)
    def accept(order: Order, db: Connection) -> None:
        db.execute(text("UPDATE hot SET n = n + 1 WHERE id = :id"), {"id": int(order.name)})

    hot, count = 1000, 20_000 if PROOF else 5_000
    store = open_store(Settings(database_url=postgresql_url), check=False)
    store.schema.upgrade()
    with store.transaction() as unit:
        unit.write("CREATE TABLE hot (id integer PRIMARY KEY, n integer NOT NULL)", [()])
        unit.write(f"INSERT INTO hot SELECT n, 0 FROM generate_series(1, {hot + count}) AS n", [()])

    def drain(rows: list[int]) -> float:
        """How many messages a second a worker does that write to these rows."""
        services = connect(Settings(database_url=postgresql_url, threads=4))
        worker = Worker(app, services)
        for start in range(0, count, 500):
            part = map(str, rows[start : start + 500])
            app._publish([app._compose(orders, Order(name=row), key=row) for row in part])
        thread = threading.Thread(target=worker.run)
        began = time.monotonic()
        thread.start()
        wait_until(lambda: sum(store.ledger.pending(["shop.accept"])) == 0)
        took = time.monotonic() - began
        worker.stop()
        thread.join(30)
        services.close()
        return count / took

    own, shared = list(range(hot + 1, hot + count + 1)), [*range(1, hot + 1)] * (count // hot)
    drawn = random.Random(53)
    drawn.shuffle(own)
    drawn.shuffle(shared)
    calm, contended = map(max, zip(*[(drain(own), drain(shared)) for _ in range(2)], strict=True))
    print(f"{contended:,.0f} messages/s where rows are hot, {calm:,.0f} where each has its own")
    with store.unit("") as unit:
        assert unit.read(f"SELECT DISTINCT n FROM hot WHERE id <= {hot}") == [(2 * count // hot,)]
    assert store.ledger.balances()["shop.accept"][:3] == (4 * count, 4 * count, 0)
    store.close()
    assert contended > calm / 2 / 2, "half of the bound: machines are noisy"


@pytest.mark.postgresql
def test_row_33_deadlocks_are_never_attempts(postgresql_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, concurrency=4, retry=RetryPolicy(attempts=1), isolate="single")
    def accept(order: Order, db: Connection) -> None:
        first, second = (1, 2) if int(order.name) % 2 else (2, 1)
        for id in (first, second):
            db.execute(text("UPDATE hot SET n = n + 1 WHERE id = :id"), {"id": id})

    setup = open_store(Settings(database_url=postgresql_url), check=False)
    setup.schema.upgrade()
    with setup.transaction() as unit:
        unit.write("CREATE TABLE hot (id integer PRIMARY KEY, n integer NOT NULL)", [()])
        unit.write("INSERT INTO hot VALUES (1, 0), (2, 0)", [()])
        ((name,),) = unit.read("SELECT current_database()")
        unit.write(f"ALTER DATABASE {name} SET deadlock_timeout = '5ms'", [()])
    services = connect(Settings(database_url=postgresql_url, threads=4))
    worker = Worker(app, services)
    app.publish_many(orders, [Order(name=str(number)) for number in range(1000)])
    thread = threading.Thread(target=worker.run)
    thread.start()
    wait_until(lambda: sum(services.store.ledger.pending(["shop.accept"])) == 0)
    worker.stop()
    thread.join(30)
    services.close()

    def collided() -> bool:
        with setup.unit("") as unit:
            (row,) = unit.read("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        return bool(row[0])

    wait_until(collided)
    with setup.unit("") as unit:
        assert unit.read("SELECT n FROM hot") == [(1000,), (1000,)]
    assert setup.ledger.balances()["shop.accept"][:3] == (1000, 1000, 0)
    setup.close()


def test_row_33_a_thousand_serialization_failures_are_no_attempt(postgresql_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)
    met: set[str] = set()

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.name not in met:
            met.add(order.name)
            db.execute(text("DO $$ BEGIN RAISE EXCEPTION 'as if serialized' USING ERRCODE = '40001'; END $$"))

    with running(app, postgresql_url) as harness:
        names = [str(number) for number in range(1000)]
        app.publish_many(orders, [Order(name=name) for name in names])
        harness.until_quiet()
        assert len(met) == 1000
        once(harness, *names)
        assert harness.dead() == []


def test_a_handler_that_always_collides_fails_in_the_end(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowkit.engine.triage.CONFLICT_SECONDS", 0.0)
    app = new_app()
    orders = app.channel("orders", Order)
    runs: list[str] = []

    @app.flow(orders, retry=RetryPolicy(attempts=2, first="10ms", factor=1, jitter=0))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.name == "3":
            runs.append(order.name)
            db.execute(text("DO $$ BEGIN RAISE EXCEPTION 'stale' USING ERRCODE = '40001'; END $$"))

    with running(app, postgresql_url) as harness:
        names = [str(number) for number in range(10)]
        app.publish_many(orders, [Order(name=name) for name in names])
        for _ in range(2):
            harness.advance("1s")
        once(harness, *(name for name in names if name != "3"))
        (letter,) = harness.dead()
        assert letter.attempts == 2
        assert f"collided with others {SOLO_BATCHES * SOLO_TRIES} times as it ran alone" in letter.error
        assert len(runs) < 3 * SOLO_BATCHES * (SOLO_TRIES + 1)


def test_row_68_two_hundred_flows_share_a_few_connections(postgresql_url: str) -> None:
    app = new_app()
    channels = [app.channel(f"c{number}", Order) for number in range(200)]
    for number, channel in enumerate(channels):

        @app.flow(channel, name=f"f{number}")
        def accept(order: Order, db: Session) -> None:
            db.add(Effect(name=order.name))

    setup = open_store(Settings(database_url=postgresql_url), check=False)
    setup.schema.upgrade()
    Effect.metadata.create_all(setup.dialect.engine)
    services = connect(Settings(database_url=postgresql_url, threads=4))
    worker = Worker(app, services)
    for channel in channels:
        app.publish(channel, Order(name=channel.name))
    thread = threading.Thread(target=worker.run)
    thread.start()
    most = 0

    def drained() -> bool:
        nonlocal most
        with setup.unit("") as unit:
            ((count,),) = unit.read(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
                "AND backend_type = 'client backend'"
            )
        most = max(most, count)
        return bool(sum(setup.ledger.pending(list(app.flows))) == 0)

    wait_until(drained)
    worker.stop()
    thread.join(30)
    services.close()
    with Session(setup.dialect.engine) as session:
        assert effects(session) == {channel.name: 1 for channel in channels}
    setup.close()
    assert most <= 4 + 2, f"{most} connections"
