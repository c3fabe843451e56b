"""PostgreSQL behind a pooler: pgbouncer, in both of its modes that know transactions."""

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from flowkit import App, Channel, Objects, RetryPolicy, StoreUnavailable
from flowkit.errors import ConfigError
from flowkit.message import new_id
from flowkit.ports import WorkerInfo
from flowkit.services import connect, open_store
from flowkit.settings import Settings
from flowkit.testing import Harness
from tests.conftest import CI
from tests.services.pair import Pair
from tests.services.pgbouncer import PgBouncer, find_binary
from tests.services.postgresql import PostgreSQL
from tests.support.databases import checked, prepared, rows, working
from tests.support.roles import administer, role_of
from tests.support.shop import FAST, Effect, Order, new_app, once, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.postgresql
DECLARED = "?pooler=transaction"


@pytest.fixture(scope="module")
def pgbouncer(postgresql: PostgreSQL) -> Iterator[PgBouncer]:
    if find_binary() is None and not CI:
        pytest.skip("pgbouncer is not installed: run tests/services/install")
    with closing(PgBouncer(postgresql, "transaction")) as made:
        yield made


@pytest.fixture
def database(postgresql: PostgreSQL, postgresql_url: str, pgbouncer: PgBouncer) -> str:
    """The name of a fresh database, behind a pooler in transaction mode."""
    pgbouncer.change(postgresql, "transaction")
    return postgresql_url.rsplit("/", 1)[1]


def busy_app() -> tuple[App, Channel[Order]]:
    """Two flows with two lanes each, retries, objects and handlers of both kinds."""
    app = new_app()
    orders, accepted = app.channel("orders", Order), app.channel("accepted", Order)

    @app.flow(orders, to=accepted, concurrency=2, retry=FAST)
    def accept(order: Order, db: Session, objects: Objects) -> Order:
        seen = objects.get(order.name)
        db.add(Effect(name=f"accept {order.name}"))
        objects.put(order.name, (seen or 0) + 1)
        return order

    @app.flow(accepted, concurrency=2, retry=FAST)
    async def invoice(order: Order, objects: Objects) -> None:
        objects.put(f"invoice {order.name}", 1)

    return app, orders


@pytest.mark.parametrize("mode", ["session", "transaction", "transaction and direct"])
def test_flows_run_behind_a_pooler(postgresql: PostgreSQL, pgbouncer: PgBouncer, database: str, mode: str) -> None:
    parameters = {
        "session": "",
        "transaction": DECLARED,
        "transaction and direct": f"{DECLARED}&direct=127.0.0.1:{postgresql.port}",
    }
    if mode == "session":
        pgbouncer.change(postgresql, "session")
    url = pgbouncer.url(database) + parameters[mode]
    app, orders = busy_app()
    client, _ = busy_app()
    with closing(prepared(url)) as services, closing(connect(Settings(database_url=url))) as others:
        client.connect(others)
        with working(app, services) as worker:
            for number in range(30):
                for _ in range(2):
                    client.publish(orders, Order(name=str(number)), id=str(number))
            wait_until(lambda: services.store.ledger.unfinished(list(app.flows)) == 0)
            store: Any = services.store
            with store.unit("") as unit:
                locked = unit.read("SELECT locked FROM flowkit_workers WHERE id = %s", (worker.id,))
            assert locked == [(int(mode != "transaction"),)]
            assert worker.state == "ready"
            assert store.ledger.balances()["shop.invoice"].applied == 30
    checked(postgresql.url(database), list(app.flows), 30)


def test_a_living_worker_is_not_declared_gone_behind_a_pooler(pgbouncer: PgBouncer, database: str) -> None:
    """Its lock would be in a session that the other worker gets too."""
    url = pgbouncer.url(database) + DECLARED
    with closing(prepared(url)) as services, closing(connect(Settings(database_url=url))) as others:
        mine, theirs = (WorkerInfo(new_id(), "shop", "host", 1) for _ in range(2))
        for store, worker in ((services.store, mine), (others.store, theirs)):
            store.fleet.join(worker)
        for store, worker in ((services.store, mine), (others.store, theirs)):
            store.fleet.beat(worker.id, "ready")
        assert services.store.fleet.ready("shop") == 2


def execute(statement: str) -> Callable[[Session], object]:
    return lambda db: db.execute(text(statement))


def set_by_the_driver(db: Session) -> None:
    driver: Any = db.connection().connection.driver_connection
    driver.execute("SET app.tenant = 'acme'")


@pytest.mark.parametrize(
    ("deed", "instead"),
    [
        pytest.param(execute("CREATE TEMP TABLE mine (name text)"), "ON COMMIT DROP", id="table"),
        pytest.param(execute("SELECT pg_advisory_lock(4711)"), "ON COMMIT DROP", id="lock"),
        pytest.param(execute("PREPARE mine AS SELECT 1"), "ON COMMIT DROP", id="name"),
        pytest.param(set_by_the_driver, "use the Session or Connection", id="driver"),
    ],
)
def test_what_lasts_for_a_session_is_refused_behind_a_pooler(
    pgbouncer: PgBouncer, database: str, deed: Callable[[Session], object], instead: str
) -> None:
    """The pooler lends that session to others."""
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        if order.deed:
            deed(db)
        execute("CREATE TEMP TABLE passing ON COMMIT DROP AS SELECT 1")(db)
        db.add(Effect(name=order.name))

    with running(app, pgbouncer.url(database) + DECLARED) as harness:
        for name in ("a", "b", "c"):
            harness.publish(orders, Order(name=name, deed="x" if name == "b" else ""))
        harness.until_quiet()
        once(harness, "a", "c")
        (letter,) = harness.dead()
        assert "in the server session, which a pooler in transaction mode shares with others" in letter.error
        assert instead in letter.error


def test_a_server_that_refuses_later_to_say_which_one_it_is_is_used_all_the_same(
    postgresql_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each transaction asks. The role's connection needs no pooler for that."""
    with (
        role_of(postgresql_url) as url,
        closing(open_store(Settings(database_url=url + DECLARED))) as store,
        caplog.at_level(logging.WARNING),
    ):
        store.subscribers.add({"shop.accept": "orders"})
        administer(postgresql_url, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        for number in range(3):
            store.subscribers.add({f"shop.{number}": "orders"})
        assert len(store.subscribers.channels()) == 4
    assert ["old primary" in record.getMessage() for record in caplog.records] == [True]


def test_a_pooler_that_is_not_told_of_is_refused_by_name(pgbouncer: PgBouncer, database: str) -> None:
    prepared(pgbouncer.url(database) + DECLARED).close()
    with pytest.raises(ConfigError, match="add pooler=transaction"):
        open_store(Settings(database_url=pgbouncer.url(database)))


def test_a_pooler_that_changes_its_mode_is_named(postgresql: PostgreSQL, pgbouncer: PgBouncer, database: str) -> None:
    pgbouncer.change(postgresql, "session")
    with closing(open_store(Settings(database_url=pgbouncer.url(database)), check=False)) as store:
        store.schema.upgrade()

        def ask() -> None:
            for _ in range(8):  # the driver prepares what it has executed five times
                store.subscribers.channels()

        ask()
        pgbouncer.change(postgresql, "transaction")
        with pytest.raises(StoreUnavailable, match=r"prepared statement.*add pooler=transaction"):
            ask()


@pytest.mark.parametrize("parameters", ["pooler=session", "pooler=statement", "direct=localhost:5432"])
def test_a_parameter_that_says_nothing_is_refused(postgresql_url: str, parameters: str) -> None:
    with pytest.raises(ConfigError, match="write pooler=transaction"):
        open_store(Settings(database_url=f"{postgresql_url}?{parameters}"), check=False)


def test_an_old_primary_behind_the_pooler_gets_no_writes() -> None:
    """The clients keep their connections to the pooler, which goes from one server to the other and back."""
    if find_binary() is None and not CI:
        pytest.skip("pgbouncer is not installed: run tests/services/install")
    app = App("shop")
    orders = app.channel("orders", Order)
    app.flow(orders, name="accept")(lambda order: None)
    with closing(Pair(synchronous=False)) as pair, closing(PgBouncer(pair.primary, "transaction")) as pooler:
        pair.create_database("row_32")
        old, new = pair.primary, pair.standby
        with Harness(app, pooler.url("row_32") + DECLARED) as harness:
            harness.publish(orders, Order(name="a"))
            wait_until(lambda: arrived(new))
            old.stop("immediate")
            new.promote()
            pooler.change(new, "transaction")
            harness.publish(orders, Order(name="b"))
            old.start()
            pooler.change(old, "transaction")
            with pytest.raises(StoreUnavailable, match="is an old primary"):
                harness.publish(orders, Order(name="c"))
            pooler.change(new, "transaction")
            harness.publish(orders, Order(name="c"))
            assert (rows(old), rows(new)) == (1, 3)


def arrived(server: PostgreSQL) -> bool:
    """Whether a standby has the first row."""
    try:
        return rows(server) == 1
    except psycopg.Error:
        return False
