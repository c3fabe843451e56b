"""Databases that fail or restart: rows 27, 28, 34, 38 and 57 of the failures."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from flowkit import App, Objects, OutcomeUnknown, RetryPolicy, StoreUnavailable, UnitOfWork
from flowkit.errors import CommitUnknown
from flowkit.message import new_id
from flowkit.ports import Copy, Delivery
from flowkit.services import connect, open_store
from flowkit.settings import Settings
from flowkit.testing.conformance import FLOW, message
from tests.conftest import PROOF
from tests.services.postgresql import PostgreSQL
from tests.services.proxy import Proxy
from tests.support.databases import chain, checked, prepared, working
from tests.support.shop import Effect, Order, new_app, once, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.migrated

COMMIT = b"COMMIT\0"
"""As the driver sends it; READ COMMITTED is not meant."""
END_OTHERS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""


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
