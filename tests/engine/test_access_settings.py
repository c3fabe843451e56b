"""Settings, locks and names of the session that a handler uses end with its message, on both stores."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import Session

from flowkit import App, Channel, Objects, Outbox, RetryPolicy, UnitOfWork
from tests.support.access import CULPRIT, ISOLATIONS, NAMES, OTHERS, on, publish
from tests.support.roles import administer, role_of
from tests.support.shop import FAST, Effect, Order, once, running

pytestmark = pytest.mark.migrated


# ---------------------------------------------------------------- settings, names, locks


SEEN = "coalesce(current_setting('app.tenant', true), '')"


@ISOLATIONS
@pytest.mark.parametrize(
    "setting",
    [
        "SET LOCAL app.tenant = 'acme'",
        "SET app.tenant = 'acme'",
        "SELECT set_config('app.tenant', 'acme', true)",
        "/* tenant */ SELECT 1, set_config('app.tenant', 'acme', false)",
    ],
)
def test_settings_of_a_message_are_gone_with_it(
    app: App, orders: Channel[Order], postgresql_url: str, isolate: Any, setting: str
) -> None:
    @app.flow(orders, retry=FAST, isolate=isolate)
    def accept(order: Order, db: Session) -> None:
        if order.deed:
            db.execute(text(setting))
        tenant = db.scalar(text(f"SELECT {SEEN}"))
        db.add(Effect(name=f"{order.name}{tenant}"))

    with running(app, postgresql_url) as harness:
        publish(harness, orders)
        once(harness, *OTHERS, f"{CULPRIT}acme")


@pytest.fixture
def tenants(postgresql_url: str) -> Iterator[str]:
    """A database whose tenant `acme` has a schema with twins of all tables, and a role that may use only those."""
    engine = create_engine(postgresql_url.replace("postgresql:", "postgresql+psycopg:"))

    def twin() -> None:
        with engine.begin() as connection:
            names = connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
            connection.execute(text("CREATE SCHEMA acme"))
            for name in names:
                connection.execute(text(f"CREATE TABLE acme.{name} (LIKE public.{name} INCLUDING ALL)"))

    yield postgresql_url, engine, twin  # type: ignore[misc]
    engine.dispose()


def says(db: Session, statement: str) -> None:
    db.execute(text(statement))


def says_by_the_driver(db: Session, statement: str) -> None:
    driver: Any = db.connection().connection.driver_connection
    driver.execute(statement)


@pytest.mark.parametrize(
    ("kind", "setting", "say"),
    [
        ("def", "SET LOCAL search_path = acme", says),
        ("def", "SET search_path = acme", says),
        ("def", "SET search_path = acme", says_by_the_driver),
        ("async def", "SET LOCAL search_path = acme", says),
        ("async def", "SET LOCAL search_path = acme", says_by_the_driver),
    ],
)
def test_row_b6_a_search_path_does_not_lead_flowkit_astray(
    app: App, orders: Channel[Order], tenants: Any, kind: str, setting: str, say: Callable[[Session, str], None]
) -> None:
    url, engine, twin = tenants
    done = app.channel("done", Order)

    def write(order: Order, db: Session, outbox: Outbox) -> None:
        if order.deed:
            say(db, setting)
        db.add(Effect(name=order.name))
        outbox.send(done, order)

    async def accept(order: Order, work: UnitOfWork) -> None:
        await work.run(lambda db, outbox: write(order, db, outbox))

    handler: Callable[..., object] = write if kind == "def" else accept
    app.flow(orders, to=done, retry=FAST, name="accept")(handler)

    @app.flow(done)
    def log(order: Order, db: Session) -> None:
        db.add(Effect(name=f"done {order.name}"))

    with running(app, url) as harness:
        twin()
        publish(harness, orders)
        once(harness, *OTHERS, *(f"done {name}" for name in NAMES))
        with engine.connect() as connection:
            assert connection.scalars(text("SELECT name FROM acme.effects")).all() == [CULPRIT]
            for table in ("messages", "inbox", "dead", "counters"):
                assert connection.scalar(text(f"SELECT count(*) FROM acme.flowkit_{table}")) == 0


@pytest.mark.parametrize("say", [says, says_by_the_driver])
def test_row_b6_a_role_without_rights_on_flowkits_tables(
    app: App, orders: Channel[Order], postgresql_url: str, say: Callable[[Session, str], None]
) -> None:
    done = app.channel("done", Order)

    @app.flow(orders, to=done, retry=FAST)
    def accept(order: Order, db: Session) -> Order:
        say(db, "SET ROLE weak" if order.deed else "SELECT 1")
        db.add(Effect(name=order.name))
        return order

    @app.flow(done)
    def log(order: Order, db: Session) -> None:
        db.add(Effect(name=f"done {order.name}"))

    with running(app, postgresql_url) as harness:
        with harness.session() as session:
            session.execute(text("DO $$ BEGIN CREATE ROLE weak; EXCEPTION WHEN duplicate_object THEN NULL; END $$"))
            session.execute(text("GRANT INSERT, SELECT ON effects TO weak; GRANT USAGE ON effects_row_seq TO weak"))
        try:
            publish(harness, orders)
            once(harness, *NAMES, *(f"done {name}" for name in NAMES))
        finally:
            with harness.session() as session:
                session.execute(text("DROP OWNED BY weak; DROP ROLE weak"))


def test_settings_that_a_function_changes_are_put_back_where_the_flow_says_so(
    app: App, orders: Channel[Order], postgresql_url: str
) -> None:
    @app.flow(orders, retry=FAST, settings=True)
    def accept(order: Order, db: Session) -> None:
        if order.deed:
            db.execute(text("SELECT become('acme')"))
        tenant, durable = db.execute(text(f"SELECT {SEEN}, current_setting('synchronous_commit')")).one()
        db.add(Effect(name=f"{order.name}{tenant}{durable}"))

    with running(app, postgresql_url) as harness:
        with harness.session() as session:
            session.execute(
                text(
                    "CREATE FUNCTION become(name text) RETURNS text LANGUAGE sql AS $$ "
                    "SELECT set_config('app.tenant', name, false) || set_config('synchronous_commit', 'off', false) $$"
                )
            )
        publish(harness, orders)
        once(harness, *(f"{name}on" for name in OTHERS), f"{CULPRIT}acmeoff")


def test_rows_of_one_tenant_are_hidden_from_the_next_message(app: App, orders: Channel[Order], tenant_url: str) -> None:
    """Row-level security by a setting that a function makes, which FlowKit does not see in a statement."""
    seen: dict[str, set[str]] = {}
    done = app.channel("done", Order)

    @app.flow(orders, to=done, retry=RetryPolicy(attempts=1), settings=True)
    def accept(order: Order, db: Session) -> Order:
        if order.deed:
            db.execute(text("SELECT become(:name)"), {"name": order.deed})
            db.add(Effect(name=f"{order.deed} {order.name}"))
        seen[order.name] = {name.split()[0] for name in db.scalars(select(Effect.name))}
        return order

    app.flow(done, name="log")(lambda order: None)
    deeds = dict(zip("abcdefg", ["acme", "bolt", "", "bolt", "acme", "", ""], strict=True))
    with running(app, tenant_url) as harness:
        for name, deed in deeds.items():
            harness.publish(orders, Order(name=name, deed=deed))
        harness.until_quiet()
        assert not harness.dead()
        assert seen == {name: {deed} if deed else set() for name, deed in deeds.items()}
        assert harness.balances()["shop.log"].applied == len(deeds)


@pytest.fixture
def tenant_url(postgresql_url: str) -> Iterator[str]:
    """A database whose worker's role sees the effects of the tenant that it became, and no others."""
    with role_of(postgresql_url) as url:
        administer(
            postgresql_url,
            "ALTER TABLE effects ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY own ON effects USING (split_part(name, ' ', 1) = current_setting('app.tenant', true))",
            "CREATE FUNCTION become(name text) RETURNS text LANGUAGE sql AS "
            "$$ SELECT set_config('app.tenant', name, false) $$",
        )
        yield url


@pytest.mark.parametrize(
    ("statement", "setting", "astray"),
    [
        ("SELECT hasten()", "synchronous_commit", "off"),
        ("SET LOCAL statement_timeout = '77s'", "statement_timeout", "77s"),
    ],
)
def test_no_handler_changes_with_which_settings_its_commit_goes(
    app: App, orders: Channel[Order], postgresql_url: str, statement: str, setting: str, astray: str
) -> None:
    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        db.execute(text(statement))

    with running(app, postgresql_url) as harness:
        with harness.session() as session:
            session.execute(
                text(
                    "CREATE FUNCTION hasten() RETURNS text LANGUAGE sql AS "
                    "$$ SELECT set_config('synchronous_commit', 'off', true) $$"
                )
            )
            session.execute(
                text(
                    "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                    f"INSERT INTO effects (name) SELECT CASE current_setting('{setting}') WHEN '{astray}' "
                    "THEN 'astray' ELSE 'kept' END; RETURN NULL; END $$"
                )
            )
            session.execute(  # runs as the last thing of a commit
                text(
                    "CREATE CONSTRAINT TRIGGER told AFTER UPDATE OR INSERT ON flowkit_counters DEFERRABLE INITIALLY "
                    "DEFERRED FOR EACH ROW WHEN (NEW.applied > 0) EXECUTE FUNCTION note()"
                )
            )
        harness.publish(orders, Order(name="a"))
        harness.until_quiet()
        once(harness, "kept")


@pytest.mark.parametrize(
    ("database", "statements"),
    [
        on("sqlite", ["CREATE TEMP TABLE mine (name text)", "INSERT INTO mine VALUES ('x')"]),
        on("postgresql", ["CREATE TEMPORARY TABLE mine (name text)", "INSERT INTO mine VALUES ('x')"]),
        on("postgresql", ["SELECT 1 AS x INTO TEMP mine", "SELECT x FROM mine"]),
        on("postgresql", ["PREPARE mine AS SELECT 1", "EXECUTE mine"]),
        on("postgresql", ["DECLARE mine CURSOR WITH HOLD FOR SELECT 1", "FETCH mine"]),
        on("postgresql", ["DECLARE mine CURSOR FOR SELECT 1", "FETCH mine"]),
    ],
)
@ISOLATIONS
def test_row_b5_names_that_live_for_a_connection_are_gone_with_their_message(
    app: App,
    orders: Channel[Order],
    request: pytest.FixtureRequest,
    isolate: Any,
    database: str,
    statements: list[str],
) -> None:
    @app.flow(orders, retry=FAST, isolate=isolate)
    def accept(order: Order, db: Session) -> None:
        for statement in statements:
            db.execute(text(statement))
        db.add(Effect(name=order.name))

    with running(app, request.getfixturevalue(database)) as harness:
        publish(harness, orders)
        once(harness, *NAMES)


def test_row_b11_a_lock_of_the_session_is_released_with_its_message(
    app: App, orders: Channel[Order], postgresql_url: str
) -> None:
    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        db.execute(text("SELECT pg_advisory_lock(4711)"))

    with running(app, postgresql_url) as harness:
        publish(harness, orders)
        with harness.session() as session:
            assert session.scalar(text("SELECT pg_try_advisory_xact_lock(4711)"))


def test_a_handler_may_not_set_pragmas(app: App, orders: Channel[Order], sqlite_url: str) -> None:
    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        db.execute(text("PRAGMA query_only = 1" if order.deed else "PRAGMA table_info(effects)")).close()
        db.add(Effect(name=order.name))

    with running(app, sqlite_url) as harness:
        publish(harness, orders)
        once(harness, *OTHERS)
        (letter,) = harness.dead()
        assert "the handler called PRAGMA query_only" in letter.error


@pytest.mark.parametrize(
    ("setting", "say"),
    [
        ("SET LOCAL search_path = acme", says),
        ("SET LOCAL search_path = acme", says_by_the_driver),
        ("SET ROLE weak", says_by_the_driver),
    ],
)
def test_objects_are_not_sought_with_a_handlers_settings(
    app: App, orders: Channel[Order], tenants: Any, setting: str, say: Callable[[Session, str], None]
) -> None:
    """Nor does it matter that a handler has the driver in hand, while it changes none."""
    url, engine, twin = tenants

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session, objects: Objects) -> None:
        objects.put("before", 1)
        say(db, setting if order.deed else "SELECT 1")
        objects.put("after", 1)

    with running(app, url) as harness:
        twin()
        with engine.begin() as connection:
            connection.execute(text("DO $$ BEGIN CREATE ROLE weak; EXCEPTION WHEN duplicate_object THEN NULL; END $$"))
        harness.publish(orders, Order(name="a"))
        harness.publish(orders, Order(name="b", deed="x"))
        harness.until_quiet()
        (letter,) = harness.dead()
        assert "use the objects before that" in letter.error
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM flowkit_objects")) == 2
            assert connection.scalar(text("SELECT count(*) FROM acme.flowkit_objects")) == 0
