"""Databases that fail, wait or fill: rows 8, 27 to 42, 57 and 63 of the failures."""

import logging
import os
import queue
import shutil
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.orm import Session

from flowkit import App, Objects, OutcomeUnknown, RetryPolicy, StoreUnavailable, UnitOfWork
from flowkit.engine.worker import Worker
from flowkit.errors import CommitUnknown
from flowkit.message import new_id
from flowkit.ports import Copy, Delivery, WorkerInfo
from flowkit.services import Services, SystemClock, connect, open_store
from flowkit.settings import Settings
from flowkit.store import sqlite, tables
from flowkit.store.library import sqlite_driver
from flowkit.store.postgresql.listener import key
from flowkit.store.sqlite import SqliteDialect, safe_wal
from flowkit.testing import Harness
from flowkit.testing.conformance import FLOW, message
from tests.conftest import PROOF
from tests.services.postgresql import PostgreSQL
from tests.services.proxy import Proxy
from tests.shop import Base, Effect, Order, effects, new_app, once, running

pytestmark = pytest.mark.migrated

COMMIT = b"COMMIT\0"
"""As the driver sends it; READ COMMITTED is not meant."""
END_OTHERS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""


def prepared(url: str, **settings: Any) -> Services:
    """Services on a store that has its schema and the tables of the shop."""
    store = open_store(Settings(database_url=url), check=False)
    store.schema.upgrade()
    Base.metadata.create_all(store.dialect.engine)
    store.close()
    return connect(Settings(database_url=url, **settings))


@contextmanager
def working(app: App, services: Services) -> Iterator[Worker]:
    """A worker on threads."""
    worker = Worker(app, services)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(60)
        assert not thread.is_alive()


def wait_until(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)


def chain(app: App) -> Any:
    """Two flows, with an effect in each."""
    orders, accepted = app.channel("orders", Order), app.channel("accepted", Order)

    @app.flow(orders, to=accepted, concurrency=2)
    def accept(order: Order, db: Session) -> Order:
        db.add(Effect(name=f"accept {order.name}"))
        return order

    @app.flow(accepted)
    def invoice(order: Order, db: Session) -> None:
        db.add(Effect(name=f"invoice {order.name}"))

    return orders


def checked(url: str, flows: list[str], count: int) -> None:
    """Nothing lost, nothing twice, everything balanced."""
    store = open_store(Settings(database_url=url))
    with Session(store.dialect.engine) as session:
        found = effects(session)
    assert {name: times for name, times in found.items() if times != 1} == {}
    assert len(found) == count
    for flow, balance in store.ledger.balances().items():
        assert balance.balanced, f"{flow}: {balance}"
    assert store.ledger.pending(flows) == (0, 0)
    store.close()


def publish_safely(app: App, channel: Any, order: Order, id: str) -> None:
    """Publish as a careful client does, again under the same id until it is accepted."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            app.publish(channel, order, id=id)
            return
        except (OutcomeUnknown, StoreUnavailable):
            time.sleep(0.02)
    raise AssertionError("the store did not come back")


CUTS = 200 if PROOF else 30


@pytest.mark.postgresql
@pytest.mark.timeout(600)
def test_row_27_connections_cut_during_commit(postgresql: PostgreSQL, postgresql_url: str) -> None:
    name = postgresql_url.rsplit("/", 1)[1]
    prepared(postgresql_url).close()
    app = new_app()
    orders = chain(app)
    with Proxy("127.0.0.1", postgresql.port) as proxy:
        services = connect(Settings(database_url=postgresql.url(name, port=proxy.port), lease=2))
        with working(app, services):
            sent = 0
            while proxy.cuts < CUTS:
                proxy.cut_when(COMMIT, forward=sent % 2 == 0)
                publish_safely(app, orders, Order(name=str(sent)), f"order-{sent}")
                sent += 1
            for number in range(sent, sent + 20):
                publish_safely(app, orders, Order(name=str(number)), f"order-{number}")
            wait_until(lambda: quiet(postgresql_url, list(app.flows)))
        services.close()
    checked(postgresql_url, list(app.flows), 2 * (sent + 20))


@pytest.mark.postgresql
@pytest.mark.parametrize("statement", [b"synchronous_commit", b"flowkit_version"])
def test_row_28_a_connection_cut_at_the_start_is_a_store_that_is_away(
    postgresql: PostgreSQL, postgresql_url: str, statement: bytes
) -> None:
    prepared(postgresql_url).close()
    with Proxy("127.0.0.1", postgresql.port) as proxy:
        proxy.cut_when(statement, forward=False)
        url = postgresql.url(postgresql_url.rsplit("/", 1)[1], port=proxy.port)
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            open_store(Settings(database_url=url))
        open_store(Settings(database_url=url)).close()


def test_row_28_a_look_at_other_workers_is_cut_and_the_store_is_away(
    postgresql: PostgreSQL, postgresql_url: str
) -> None:
    worker = new_id()
    prepared(postgresql_url).close()
    with Proxy("127.0.0.1", postgresql.port) as proxy:
        url = postgresql.url(postgresql_url.rsplit("/", 1)[1], port=proxy.port)
        with closing(open_store(Settings(database_url=url))) as store:
            assert store.dialect.gone(worker)
            proxy.cut_when(b"pg_try_advisory_xact_lock", forward=False)
            with pytest.raises(StoreUnavailable):
                store.dialect.gone(worker)
            assert store.dialect.gone(worker)


def test_row_28_a_unit_that_cannot_be_rolled_back_tells_what_went_wrong_before(postgresql_url: str) -> None:
    prepared(postgresql_url).close()
    with closing(open_store(Settings(database_url=postgresql_url))) as store:
        with pytest.raises(RuntimeError, match="a mistake"), store.unit("shop.accept") as unit:
            session: Any = unit.access().give(Session)
            session.execute(text("INSERT INTO effects (name) VALUES ('a')"))
            with psycopg.connect(postgresql_url.replace("+psycopg", "")) as own:
                own.execute(END_OTHERS)
            raise RuntimeError("a mistake")
        with store.unit("") as unit:
            assert unit.read("SELECT count(*) FROM effects") == [(0,)]


def quiet(url: str, flows: list[str]) -> bool:
    store = open_store(Settings(database_url=url))
    try:
        return bool(sum(store.ledger.pending(flows)) == 0)
    finally:
        store.close()


@pytest.mark.postgresql
@pytest.mark.timeout(600)
def test_row_28_restarts_of_the_database_under_load(postgresql: PostgreSQL, postgresql_url: str) -> None:
    services = prepared(postgresql_url)
    app = new_app()
    orders = chain(app)
    sent = 0
    with working(app, services) as worker:
        for how in ("fast", "immediate") * (10 if PROOF else 1):
            for _ in range(30):
                publish_safely(app, orders, Order(name=str(sent)), f"order-{sent}")
                sent += 1
            postgresql.restart(how)
        for _ in range(30):
            publish_safely(app, orders, Order(name=str(sent)), f"order-{sent}")
            sent += 1
        wait_until(lambda: quiet(postgresql_url, list(app.flows)))
        wait_until(lambda: worker.state == "ready")
    services.close()
    checked(postgresql_url, list(app.flows), 2 * sent)


def test_a_server_that_dies_before_a_rollback_is_no_error_of_its_own(
    postgresql_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    store: Any = open_store(Settings(database_url=postgresql_url), check=False)
    other: Any = open_store(Settings(database_url=postgresql_url), check=False)
    with closing(store), closing(other), caplog.at_level(logging.WARNING):
        with store.unit("") as unit:
            ((pid,),) = unit.read("SELECT pg_backend_pid()")
            unit.begin()
            with other.unit("") as killer:
                assert killer.read("SELECT pg_terminate_backend(%s, 60000)", (pid,)) == [(True,)]  # and waits for it
        with store.unit("") as unit:
            assert unit.read("SELECT pg_backend_pid() = %s", (pid,)) == [(False,)]
    assert not caplog.records


def test_row_28_a_session_that_is_ended_as_it_commits_may_have_committed(postgresql_url: str) -> None:
    """A server that is told to end finishes the commit that it writes to disk, and then says nothing of it."""
    store: Any = open_store(Settings(database_url=postgresql_url), check=False)
    store.schema.upgrade()
    other: Any = open_store(Settings(database_url=postgresql_url))
    said: Counter[tuple[str, bool]] = Counter()
    with closing(store), closing(other), ThreadPoolExecutor(1) as pool:
        for number in range(200):
            row, committing = str(number), threading.Event()

            def end(pid: int, delay: float, committing: threading.Event = committing) -> None:
                committing.wait()
                time.sleep(delay)  # any moment of a commit, which takes some milliseconds
                with other.unit("") as unit:
                    unit.read("SELECT pg_terminate_backend(%s)", (pid,))

            try:
                with store.unit("") as unit:
                    ((pid,),) = unit.read("SELECT pg_backend_pid()")
                    ended = pool.submit(end, pid, number % 10 * 0.0003)
                    unit.stage([Copy(row, message(), FLOW)])
                    committing.set()
                    unit.commit()
                    told = "committed"
            except CommitUnknown:
                told = "unknown"
            except StoreUnavailable:
                told = "not committed"
            ended.result()
            store.dialect.engine.dispose()  # the next one begins on a new connection
            with other.unit("") as unit:
                said[told, bool(unit.read("SELECT 1 FROM flowkit_messages WHERE copy = %s", (row,)))] += 1
    assert said["unknown", True], f"vacuous: {said}"
    assert not said["committed", False] and not said["not committed", True], said


@pytest.mark.parametrize("kind", ["objects", "work", "session", "connection"])
def test_row_27_a_connection_that_died_unseen_costs_no_attempt(postgresql_url: str, kind: str) -> None:
    app, seen = new_app(), set[str]()
    orders = app.channel("orders", Order)

    def cut(order: Order) -> str:
        """End every connection to the database, once for each order."""
        if order.name not in seen:
            seen.add(order.name)
            with psycopg.connect(postgresql_url.replace("+psycopg", "")) as own:
                own.execute(END_OTHERS)
        return order.name

    async def with_objects(order: Order, objects: Objects) -> None:
        cut(order)
        await objects.get("a")

    async def with_work(order: Order, work: UnitOfWork) -> None:
        name = cut(order)
        await work.run(lambda db, outbox: db.add(Effect(name=name)))

    def with_session(order: Order, db: Session) -> None:
        db.add(Effect(name=cut(order)))

    def with_connection(order: Order, db: Connection) -> None:
        db.execute(text("INSERT INTO effects (name) VALUES (:name)"), {"name": cut(order)})

    handlers: dict[str, Callable[..., object]] = {
        "objects": with_objects, "work": with_work, "session": with_session, "connection": with_connection
    }  # fmt: skip
    app.flow(orders, retry=RetryPolicy(attempts=1), name="accept")(handlers[kind])
    with running(app, postgresql_url) as harness:
        for number in range(5):
            harness.publish(orders, Order(name=str(number)))
            with suppress(StoreUnavailable):  # its own transaction was cut as well: it runs again
                harness.until_quiet()
            harness.until_quiet()
        assert len(seen) == 5
        assert [letter.error for letter in harness.dead()] == []


@pytest.mark.postgresql
def test_row_57_an_owner_frozen_in_its_transaction_frees_its_rows(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowkit.store.postgresql.dialect.MARGIN_SECONDS", 0.5)
    services = prepared(postgresql_url)
    store: Any = services.store
    one = Delivery(message(), FLOW)
    with store.unit(FLOW, deadline=0.5) as frozen:
        assert frozen.claim([one])
        began = time.monotonic()
        with store.unit(FLOW) as other:
            assert other.claim([one]), "the server ends the frozen transaction, and the message can be claimed"
            other.commit()
        assert time.monotonic() - began < 3 * 1.0
        with pytest.raises(StoreUnavailable):
            frozen.commit()
    services.close()


PAIRS = 1000 if PROOF else 300


def test_row_34_many_pairs_of_copies_at_once(database_url: str) -> None:
    services = prepared(database_url)
    store: Any = services.store
    copies = [Delivery(message(), FLOW) for _ in range(PAIRS)]
    barrier = threading.Barrier(4)
    won: list[int] = []

    def run() -> None:
        mine = 0
        for one in copies:
            barrier.wait(60)
            with store.unit(FLOW) as unit:
                if unit.claim([one]):
                    unit.write("INSERT INTO effects (name) VALUES ('once')", [()])
                    mine += 1
                unit.commit()
        won.append(mine)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sum(won) == PAIRS
    with store.unit("") as unit:
        assert unit.read("SELECT count(*) FROM effects") == [(PAIRS,)]
    services.close()


def test_row_38_a_row_that_cannot_be_sent_does_not_block_the_others() -> None:
    app = new_app()
    blocked, free = app.channel("blocked", Order), app.channel("free", Order)

    @app.flow(blocked)
    def first(order: Order, db: Session) -> None:
        db.add(Effect(name=f"blocked {order.name}"))

    @app.flow(free)
    def second(order: Order, db: Session) -> None:
        db.add(Effect(name=f"free {order.name}"))

    with running(app, "sqlite:///:memory:", broker=True) as harness:
        harness.broker.unbind("shop.first")
        for number in range(5):
            harness.publish(blocked, Order(name=str(number)))
            harness.publish(free, Order(name=str(number)))
        harness.until_quiet()
        once(harness, *(f"free {number}" for number in range(5)))
        assert harness.store.ledger.backlog()["shop.first"].parked == 5
        harness.broker.declare(["shop.first"])
        harness.advance("31s")
        once(harness, *(f"{kind} {number}" for kind in ("free", "blocked") for number in range(5)))


@pytest.mark.timeout(900)
def test_row_39_many_writers_leak_no_lock_errors(sqlite_url: str) -> None:
    services = prepared(sqlite_url)
    app = new_app()
    orders = chain(app)
    errors: list[BaseException] = []
    end = time.monotonic() + (60 if PROOF else 3)

    def write(writer: int) -> None:
        number = 0
        try:
            while time.monotonic() < end:
                app.publish(orders, Order(name=f"{writer}-{number}"))
                number += 1
        except BaseException as error:
            errors.append(error)
        sent.append(number)

    sent: list[int] = []
    with working(app, services):
        writers = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in writers:
            thread.start()
        for thread in writers:
            thread.join(120)
        wait_until(lambda: sum(services.store.ledger.pending(list(app.flows))) == 0, 600)
    services.close()
    assert errors == []
    checked(sqlite_url, list(app.flows), 2 * sum(sent))


@pytest.mark.parametrize("there", [False, True], ids=["schema", "tables"])
def test_row_39_a_lock_held_too_long_at_the_start_is_a_store_that_is_away(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
    settings, app = Settings(database_url=sqlite_url, broker_url=""), new_app()
    app.flow("orders", name="accept")(lambda order: None)
    if there:
        connect(settings).close()
    holder = sqlite_driver().connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match=r"database is locked.*held"):
        app.connect(connect(settings))
    holder.execute("ROLLBACK")
    holder.close()
    app.connect(connect(settings))
    app.publish("orders", {})
    app.close()


def test_row_40_the_log_is_truncated_once_a_long_reader_is_gone(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "WAL_BYTES", 1_000_000)
    services = prepared(sqlite_url)
    store: Any = services.store
    log = tmp_path / "flowkit.db-wal"
    reader = sqlite_driver().connect(tmp_path / "flowkit.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM flowkit_messages").fetchone()
    for _ in range(50):
        with store.unit(FLOW) as unit:
            unit.stage([Copy(new_id(), message(b"x" * 20_000), FLOW) for _ in range(5)])
            unit.commit()
    assert log.stat().st_size > 4_000_000, "the reader pins the log"
    reader.execute("ROLLBACK")
    reader.close()
    store.dialect.tidy()
    assert log.stat().st_size < 1_000_000
    services.close()


COMMITS = 25
COMMITTER = f"""
import sys
from flowkit.services import open_store
from flowkit.settings import Settings
from flowkit.ports import Tally
store = open_store(Settings(database_url=sys.argv[1]))
print("begin", flush=True)
for number in range({COMMITS}):
    with store.unit("kit.flow") as unit:
        unit.count({{"kit.flow": Tally(accepted=1)}})
        unit.commit()
"""


def test_row_41_every_commit_is_one_sync_to_disk(sqlite_url: str, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        missing = "strace is not installed: run tests/services/install"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    prepared(sqlite_url).close()
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-e", "trace=fsync,fdatasync,write", "-o", str(trace)]
    subprocess.run([*command, sys.executable, "-c", COMMITTER, sqlite_url], check=True, stdout=subprocess.DEVNULL)
    calls = trace.read_text().split('write(1, "begin')[1].splitlines()
    syncs = sum("fsync(" in call or "fdatasync(" in call for call in calls)
    assert syncs >= COMMITS


def test_row_41_synchronous_is_full(sqlite_url: str) -> None:
    services = prepared(sqlite_url)
    store: Any = services.store
    with store.unit("") as unit:
        assert unit.read("PRAGMA synchronous") == [(2,)], "FULL"
        assert unit.read("PRAGMA journal_mode") == [("wal",) if safe_wal(sqlite_driver()) else ("delete",)]
    services.close()


def test_row_42_an_unsafe_sqlite_keeps_no_write_ahead_log(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {(3, 40, 1): False, (3, 51, 2): False, (3, 51, 3): True, (3, 53, 0): True}
    for version, safe in versions.items():
        assert safe_wal(type("Module", (), {"sqlite_version_info": version})) is safe  # type: ignore[arg-type]
    monkeypatch.setattr(sqlite, "safe_wal", lambda module: False)
    dialect = SqliteDialect(str(tmp_path / "old.db"), SystemClock())
    with dialect.engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "delete"
    dialect.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_row_42_a_store_that_was_opened_before_a_fork_is_refused_after_it(database_url: str) -> None:
    """Two processes would speak on one connection to PostgreSQL, and SQLite's locks do not survive a fork."""
    services, app = prepared(database_url), new_app()
    store: Any = services.store
    orders = chain(app)
    app.connect(services)
    app.publish(orders, Order(name="before"))
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            app.publish(orders, Order(name="child"))
            os.write(tell, b"it used what its parent has open")
        except BaseException as error:
            os.write(tell, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    said = os.read(told, 1000).decode()
    os.waitpid(child, 0)
    os.close(told)
    os.close(tell)
    app.publish(orders, Order(name="after"))
    assert store.ledger.balances()["shop.accept"].accepted == 2
    services.close()
    assert said.startswith("ConfigError: "), said
    assert "fork" in said and "spawn" in said


def test_row_63_slow_handlers_do_not_hold_up_publishers(sqlite_url: str) -> None:
    services = prepared(sqlite_url)
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, concurrency=3)
    def slow(order: Order, db: Session) -> None:
        time.sleep(0.02)
        db.add(Effect(name=order.name))

    app.connect(services)
    app.publish_many(orders, [Order(name=str(number)) for number in range(150)])
    waits: list[float] = []
    with working(app, services):
        wait_until(lambda: sum(services.store.ledger.pending(list(app.flows))) < 130)
        for number in range(150, 250):
            began = time.monotonic()
            app.publish(orders, Order(name=str(number)))
            waits.append(time.monotonic() - began)
        wait_until(lambda: sum(services.store.ledger.pending(list(app.flows))) == 0)
    services.close()
    checked(sqlite_url, list(app.flows), 250)
    waits.sort()
    print(f"publishers wait {waits[len(waits) // 2] * 1000:.1f} ms, p99 {waits[-2] * 1000:.1f} ms")
    assert waits[-2] < 3 * 0.1


def test_row_8_a_stuck_lane_does_not_starve_the_others(database_url: str) -> None:
    services = prepared(database_url)
    app = new_app()
    orders = app.channel("orders", Order)
    handled: queue.SimpleQueue[float] = queue.SimpleQueue()
    stuck, release = threading.Event(), threading.Event()

    @app.flow(orders, concurrency=4)
    def accept(order: Order) -> None:
        if order.deed == "stuck":
            stuck.set()
            release.wait(100)
        else:
            handled.put(time.monotonic())

    def slowest() -> float:
        """The time from its publishing that one of a hundred messages exceeds, in seconds. They come by the dozen."""
        waits: list[float] = []
        for _ in range(50):
            began = time.monotonic()
            app.publish_many(orders, [Order(name="other")] * 12)
            waits += [handled.get(timeout=30) - began for _ in range(12)]
        return statistics.quantiles(waits, n=100)[98]

    with closing(services), working(app, services), ExitStack() as last:
        slowest()  # what is slow once only
        alone = slowest()
        last.callback(release.set)
        app.publish(orders, Order(name="stuck", deed="stuck"))
        assert stuck.wait(30)
        beside = slowest()
        wait_until(lambda: services.store.ledger.unfinished(["shop.accept"]) == 1)  # it was in its handler all the time
    print(f"p99 {alone * 1000:.1f} ms, beside a stuck lane {beside * 1000:.1f} ms")
    assert beside < 3 * 2 * max(alone, 0.005), "three times the bound: machines are noisy"


def test_a_lease_ends_by_itself(database_url: str) -> None:
    services = prepared(database_url)
    store: Any = services.store
    with store.unit(FLOW) as unit:
        unit.stage([Copy(new_id(), message(), FLOW)])
        unit.commit()
    (first,) = store.queue.lease(FLOW, 1, new_id(), 0.2)
    wait_until(lambda: store.queue.due([FLOW]) == {FLOW}, 10)
    (second,) = store.queue.lease(FLOW, 1, new_id(), 30)
    assert second.deliveries == first.deliveries + 1
    services.close()


@pytest.mark.slow
def test_row_37_a_million_rows_that_wait_make_no_lease_slow(database_url: str) -> None:
    services = prepared(database_url)
    store: Any = services.store
    columns = [column.name for column in tables.messages.columns if column.name != "copy"]

    def multiply(rows: int) -> None:
        """Have so many more rows like the one that is there."""
        with store.unit(FLOW, deadline=600) as unit:
            unit.write(
                f"WITH RECURSIVE many (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM many WHERE n < {rows}) "
                f"INSERT INTO flowkit_messages (copy, {', '.join(columns)}) "
                f"SELECT substr(copy, 1, 20) || {rows} || '-' || n, {', '.join(columns)} "
                "FROM flowkit_messages, many WHERE copy = (SELECT min(copy) FROM flowkit_messages)",
                [()],
            )
            unit.commit()

    def slowest() -> float:
        """The time that one of a hundred leases exceeds, in seconds."""
        times = []
        for _ in range(300):
            began = time.perf_counter()
            assert store.queue.due([FLOW]) == {FLOW}
            leased = store.queue.lease(FLOW, 10, new_id(), 600)
            times.append(time.perf_counter() - began)
            assert len(leased) == 10
        return statistics.quantiles(times, n=100)[98]

    with store.unit(FLOW) as unit:
        unit.stage([Copy(new_id(), message(), FLOW)])
        unit.commit()
    multiply(10_000)
    few = slowest()
    multiply(1_000_000)
    many = slowest()
    assert many < 6 * few, "three times the bound, which is two: machines are noisy"
    services.close()


def test_row_43_a_full_disk_loses_nothing_and_work_goes_on_when_there_is_room(sqlite_url: str) -> None:
    services = prepared(sqlite_url)
    store: Any = services.store
    app = new_app()
    orders = chain(app)
    limit = 1_000_000

    @event.listens_for(store.dialect.engine, "checkout")
    def set_limit(connection: Any, record: Any, proxy: Any) -> None:
        connection.execute(f"PRAGMA max_page_count = {limit}")

    app.connect(services)
    accepted = refused = 0
    with store.unit("") as unit:
        ((pages,),) = unit.read("PRAGMA page_count")
    limit = pages + 30
    while not refused:
        try:
            app.publish_many(orders, [Order(name=f"{accepted}-{number}", deed="x" * 200) for number in range(20)])
            accepted += 1
        except StoreUnavailable as error:
            assert "full" in str(error)
            refused += 1
    limit = pages
    with working(app, services) as worker:
        wait_until(lambda: worker.state == "unready")
        assert app.services() is services
        limit = 1_000_000
        wait_until(lambda: sum(store.ledger.pending(list(app.flows))) == 0)
    services.close()
    checked(sqlite_url, list(app.flows), 2 * 20 * accepted)


def test_a_connection_given_up_in_its_transaction_lets_go_of_the_lock(sqlite_url: str) -> None:
    """Also while the traceback of what failed keeps one of its statements alive. The driver is the standard library's,
    which is used where its SQLite is new enough, and keeps the lock in more cases than the other."""
    path = sqlite_url.removeprefix("sqlite:///")
    connection, other = (sqlite3.connect(path, isolation_level=None, timeout=0) for _ in range(2))
    connection.execute("BEGIN IMMEDIATE")
    kept = connection.execute("SELECT 1 UNION SELECT 2")
    assert kept.fetchone()
    SqliteDialect(path, SystemClock()).discard(connection)
    other.execute("BEGIN IMMEDIATE")
    other.close()
    del kept


def test_a_lock_that_somebody_else_holds_is_not_waited_for(postgresql_url: str) -> None:
    """The backend of a connection that broke may hold a worker's liveness lock for a while."""
    store = open_store(Settings(database_url=postgresql_url), check=False)
    store.schema.upgrade()
    worker = WorkerInfo(new_id(), "kit", "host", 1)
    with store.unit("") as unit:
        unit.read("SELECT pg_advisory_lock(%s)", (key(worker.id),))
        store.fleet.join(worker)
        assert unit.read("SELECT locked FROM flowkit_workers") == [(0,)]
        unit.read("SELECT pg_advisory_unlock(%s)", (key(worker.id),))
        store.fleet.beat(worker.id, "ready")
        assert unit.read("SELECT locked FROM flowkit_workers") == [(1,)]
    store.close()


def test_a_large_purge_goes_on_at_once(sqlite_url: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)
    app.flow(orders, name="accept")(lambda order: None)
    with Harness(app, sqlite_url) as harness:
        with harness.store.transaction() as unit:
            old = [("shop.accept", "shop", str(number)) for number in range(2500)]
            columns = "flow, source, id, state, generation, attempts, suspect, changed"
            unit.write(f"INSERT INTO flowkit_inbox ({columns}) VALUES (?, ?, ?, 1, 0, 0, 0, 0)", old)
        for _ in range(3):
            harness.worker.maintenance.tick()
        with harness.store.unit("") as unit:
            assert unit.read("SELECT count(*) FROM flowkit_inbox") == [(0,)]


def test_an_idle_sqlite_is_looked_at_ever_more_seldom(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(Settings(database_url=sqlite_url))
    now, pauses = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("flowkit.store.sqlite.time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    store.wait(1)  # there is always news at first
    assert pauses == []
    store.wait(1)
    assert pauses[0] == 0.0005
    assert max(pauses) == 0.05
    assert len(pauses) < 80
    store.subscribers.add({"shop.accept": "orders"})
    pauses.clear()
    store.wait(1)
    assert pauses == []
    store.wait(1)
    assert pauses[0] == 0.0005
    store.close()
