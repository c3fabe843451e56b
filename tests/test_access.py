"""The objects that a handler gets of its unit of work: nothing of them outlives its message, on both stores."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import psycopg
import pytest
import sqlalchemy
from packaging.version import Version
from sqlalchemy import Connection, Engine, create_engine, event, func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from flowkit import App, Channel, Objects, Outbox, RetryPolicy, UnitOfWork
from flowkit.engine.triage import DEATHS
from flowkit.engine.worker import Worker
from flowkit.errors import FlowKitError
from flowkit.services import open_store
from flowkit.settings import Settings
from flowkit.store.residue import TOKEN
from flowkit.testing import Harness
from tests.shop import FAST, Effect, Order, Unique, new_app, once, running
from tests.test_postgresql import administer, role_of

pytestmark = pytest.mark.migrated

NAMES = [str(number) for number in range(10)]
CULPRIT = "4"
OTHERS = [name for name in NAMES if name != CULPRIT]
ISOLATIONS = pytest.mark.parametrize("isolate", ["batch", "savepoint", "single"])
Deed = Callable[[Session], object]


def on(database: str, *values: object) -> Any:
    """Parameters of a test that runs on this database only."""
    return pytest.param(f"{database}_url", *values, marks=[pytest.mark.postgresql] if database == "postgresql" else [])


@pytest.fixture
def app() -> App:
    return new_app()


@pytest.fixture
def orders(app: App) -> Channel[Order]:
    return app.channel("orders", Order)


def publish(harness: Harness, orders: Channel[Order], culprits: tuple[str, ...] = (CULPRIT,)) -> None:
    """Ten orders, all of which come in one batch."""
    for name in NAMES:
        harness.publish(orders, Order(name=name, deed="x" if name in culprits else ""))
    for _ in range(4):
        harness.advance("1s")


def there(harness: Harness, *names: str) -> None:
    with harness.session() as session:
        session.add_all(Unique(name=name) for name in names)
        session.flush()


def swallow(db: Session) -> None:
    db.add(Unique(name="there"))
    try:
        db.flush()
    except IntegrityError:
        """Swallowed."""


def swallow_a_statement(db: Session) -> None:
    try:
        db.execute(text("INSERT INTO uniques (name) VALUES ('there')"))
    except IntegrityError:
        """Swallowed: SQLite goes on as if nothing had been."""


def swallow_in_a_savepoint(db: Session) -> None:
    try:
        with db.begin_nested():
            swallow_a_statement(db)
    except DBAPIError:
        """PostgreSQL refuses to keep the savepoint."""
    swallow_a_statement(db)


def note_and_raise(db: Session) -> None:
    db.add(Unique(name="there"))
    try:
        db.flush()
    except IntegrityError:
        db.add(Effect(name="leak"))
        raise


@pytest.mark.postgresql
@pytest.mark.parametrize("wanted", [Connection, Session])
def test_a_handler_writes_on_the_connection_that_replaces_a_dead_one(postgresql_url: str, wanted: type) -> None:
    with closing(open_store(Settings(database_url=postgresql_url), check=False)) as opened:
        store: Any = opened
        with store.unit("shop.accept") as unit, unit.access() as access, psycopg.connect(postgresql_url) as beside:
            given = access.give(wanted)
            ((pid,),) = unit.read("SELECT pg_backend_pid()")
            beside.execute("SELECT pg_terminate_backend(%s, 60000)", (pid,))
            assert given.execute(text("SELECT pg_backend_pid()")).scalar() != pid


# ---------------------------------------------------------------- what a failed message wrote is gone


@ISOLATIONS
@pytest.mark.parametrize("deed", [swallow, swallow_a_statement, swallow_in_a_savepoint, note_and_raise])
def test_what_a_dead_message_wrote_is_gone(
    app: App, orders: Channel[Order], database_url: str, isolate: Any, deed: Deed
) -> None:
    @app.flow(orders, retry=FAST, isolate=isolate)
    def accept(order: Order, db: Session) -> None:
        if order.deed:
            deed(db)
            db.add(Effect(name="leak"))
        db.add(Effect(name=order.name))

    with running(app, database_url) as harness:
        there(harness, "there")
        publish(harness, orders)
        once(harness, *OTHERS)
        (letter,) = harness.dead()
        assert letter.attempts == 3


@pytest.mark.parametrize("deed", [swallow, swallow_a_statement])
def test_what_a_dead_unit_of_work_wrote_is_gone(
    app: App, orders: Channel[Order], database_url: str, deed: Deed
) -> None:
    @app.flow(orders, retry=RetryPolicy(attempts=1))
    async def accept(order: Order, work: UnitOfWork) -> None:
        def write(db: Session, outbox: Outbox) -> None:
            db.add(Effect(name=order.name))
            if order.deed:
                deed(db)
                db.add(Effect(name="leak"))

        await work.run(write)

    with running(app, database_url) as harness:
        there(harness, "there")
        publish(harness, orders)
        once(harness, *OTHERS)
        assert len(harness.dead()) == 1


@ISOLATIONS
def test_a_handler_that_guards_its_statement_goes_on(
    app: App, orders: Channel[Order], database_url: str, isolate: Any
) -> None:
    @app.flow(orders, retry=FAST, isolate=isolate)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            for deed in (swallow_a_statement, lambda db: db.add(Unique(name="there"))):
                try:
                    with db.begin_nested():
                        deed(db)
                        db.flush()
                        raise ValueError("not kept")
                except (IntegrityError, ValueError):
                    """Undone, and no failure of the message."""
            db.begin_nested()  # left open: what it holds is kept
            db.add(Unique(name="kept"))

    with running(app, database_url) as harness:
        there(harness, "there")
        publish(harness, orders)
        once(harness, *NAMES)
        with harness.session() as session:
            assert session.get(Unique, "kept")


@ISOLATIONS
def test_row_b1_what_a_dead_message_wrote_by_the_drivers_cursor_is_gone(
    app: App, orders: Channel[Order], database_url: str, isolate: Any
) -> None:
    @app.flow(orders, retry=FAST, isolate=isolate)
    def accept(order: Order, db: Connection) -> None:
        driver: Any = db.connection
        driver.cursor().execute(f"INSERT INTO effects (name) VALUES ('{order.name}')")
        if order.deed:
            raise ValueError("no")

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *OTHERS)
        assert len(harness.dead()) == 1


def test_row_b1_what_a_dead_message_copied_is_gone(app: App, orders: Channel[Order], postgresql_url: str) -> None:
    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        driver: Any = db.connection().connection.driver_connection
        with driver.cursor().copy("COPY effects (name) FROM STDIN") as copy:
            copy.write_row([order.name])
        if order.deed:
            raise ValueError("no")

    with running(app, postgresql_url) as harness:
        publish(harness, orders)
        once(harness, *OTHERS)
        assert len(harness.dead()) == 1


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


# ---------------------------------------------------------------- what is used after the handler


@pytest.mark.parametrize("wanted", [Session, Connection, Objects])
@ISOLATIONS
def test_what_is_used_after_its_handler_raises(
    app: App, orders: Channel[Order], database_url: str, isolate: Any, wanted: type
) -> None:
    kept: list[Any] = []
    raised: list[str] = []

    def accept(order: Order, db: Any) -> None:
        def write() -> None:
            try:
                if wanted is Objects:
                    db.put("late", 1)
                else:
                    db.execute(text("INSERT INTO effects (name) VALUES ('late')"))
            except FlowKitError as error:
                raised.append(str(error))

        for late in kept:
            thread = threading.Thread(target=late)
            thread.start()
            thread.join()
            late()
        kept[:] = [write]
        text_of = text("SELECT 1")
        _ = db.get("late") if wanted is Objects else db.execute(text_of)

    accept.__annotations__["db"] = wanted
    app.flow(orders, retry=FAST, isolate=isolate)(accept)
    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness)
        assert not harness.dead()
        assert len(raised) == 2 * (len(NAMES) - 1)
        assert "flow shop.accept" in raised[0]
        assert "after its handler had returned" in raised[0]


def test_the_connection_of_a_result_leads_to_no_other_message(
    app: App, orders: Channel[Order], database_url: str
) -> None:
    kept: list[Connection] = []
    refused: list[str] = []

    def write(connection: Connection) -> None:
        try:
            connection.execute(text("INSERT INTO effects (name) VALUES ('late')"))
        except FlowKitError as error:
            refused.append(str(error))

    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        result: Any = db.execute(text("INSERT INTO effects (name) VALUES (:name)"), {"name": order.name})
        kept.append(result.connection)
        thread = threading.Thread(target=write, args=kept[:1])
        thread.start()
        thread.join()

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *NAMES)
        assert not harness.dead()
        assert len(refused) == len(NAMES)
        assert "take it from Session.connection()" in refused[0]


@pytest.mark.parametrize("wake", [False, True], ids=["asleep", "awake"])
@pytest.mark.parametrize("name", ["engine_connect", "begin"])
def test_a_listener_to_the_engine_sets_something_for_the_transaction(
    app: App, orders: Channel[Order], postgresql_url: str, name: str, wake: bool
) -> None:
    """As apps do whose rows belong to tenants."""

    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        if wake:
            db.flush()
        tenant = db.execute(text("SELECT current_setting('app.tenant', true)")).scalar()
        db.execute(text("INSERT INTO effects (name) VALUES (:name)"), {"name": f"{order.name} of {tenant}"})

    def listen(connection: Connection) -> None:
        connection.execute(text("SET LOCAL app.tenant = 'acme'"))

    with running(app, postgresql_url) as harness:
        event.listen(Engine, name, listen)
        try:
            publish(harness, orders)
        finally:
            event.remove(Engine, name, listen)
        once(harness, *(f"{one} of acme" for one in NAMES))
        assert not harness.dead()


def test_a_listener_executes_on_the_connection_of_a_statement(
    app: App, orders: Channel[Order], database_url: str
) -> None:
    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        db.execute(text("INSERT INTO effects (name) VALUES (:name)"), {"name": order.name})

    def listen(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("INSERT INTO effects"):
            connection.execute(text("SELECT 1"))

    with running(app, database_url) as harness:
        event.listen(Engine, "before_cursor_execute", listen)
        try:
            publish(harness, orders)
            once(harness, *NAMES)
            assert not harness.dead()
        finally:
            event.remove(Engine, "before_cursor_execute", listen)


def test_a_connection_that_a_handler_holds_is_its_own(app: App, orders: Channel[Order], database_url: str) -> None:
    kept: list[Connection] = []
    shared: list[str] = []

    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        db.execute(text("SELECT 1"))
        if db.connection() in kept:
            shared.append(order.name)
        kept.append(db.connection())
        db.execute(text("INSERT INTO effects (name) VALUES (:name)"), {"name": order.name})

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *NAMES)
        assert not shared
        assert len(kept) == len(NAMES)


def test_an_object_that_changes_after_its_handler_changes_nothing(
    app: App, orders: Channel[Order], database_url: str
) -> None:
    kept: list[Unique] = []

    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        for one in kept:
            one.name = "late"
        kept[:] = [db.get_one(Unique, order.name)]
        db.add(Effect(name=order.name))

    with running(app, database_url) as harness:
        there(harness, *NAMES)
        publish(harness, orders)
        once(harness, *NAMES)
        with harness.session() as session:
            assert not session.get(Unique, "late")


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_an_outbox_that_is_used_after_its_handler_raises(
    app: App, orders: Channel[Order], database_url: str, kind: str
) -> None:
    done = app.channel("done", Order, optional=True)
    kept: list[Outbox] = []
    raised: list[str] = []

    def late(outbox: Outbox) -> None:
        for one in kept:
            with pytest.raises(FlowKitError) as error:
                one.send(done, Order(name="late"))
            raised.append(str(error.value))
        kept[:] = [outbox]

    if kind == "def":

        @app.flow(orders, to=done)
        def accept(order: Order, outbox: Outbox) -> None:
            late(outbox)
    else:

        @app.flow(orders, to=done, name="accept", concurrency=1)
        async def accept_async(order: Order, outbox: Outbox) -> None:
            late(outbox)

    with running(app, database_url) as harness:
        publish(harness, orders)
        assert not harness.sent(done)
        assert len(raised) == len(NAMES) - 1
        assert "outbox.send() was called after the handler of message" in raised[0]


def test_what_a_message_sets_on_its_session_is_its_own(app: App, orders: Channel[Order], database_url: str) -> None:
    seen: list[Any] = []

    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        seen.append((dict(db.info), db.autoflush, len(db.new), len(db.identity_map)))
        db.info["tenant"] = order.name
        db.autoflush = False
        db.add(Effect(name=order.name))

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *NAMES)
        assert seen == [({}, True, 0, 0)] * len(NAMES)


# ---------------------------------------------------------------- hooks


def test_row_b7_hooks_of_the_session_run_for_each_message(app: App, orders: Channel[Order], database_url: str) -> None:
    told: list[tuple[str, Any]] = []

    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        db.info["order"] = order.name
        db.add(Effect(name=order.name))
        if order.deed:
            raise ValueError("no")

    def audit(session: Session) -> None:
        if "order" in session.info:
            session.add(Unique(name=session.info["order"]))

    def tell(what: str) -> Callable[[Session], None]:
        return lambda session: told.append((what, session.info["order"])) if "order" in session.info else None

    hooks = [("before_commit", audit), ("after_commit", tell("commit")), ("after_rollback", tell("rollback"))]
    for name, hook in hooks:
        event.listen(Session, name, hook)
    try:
        with running(app, database_url) as harness:
            publish(harness, orders)
            once(harness, *OTHERS)
            with harness.session() as session:
                assert sorted(one.name for one in session.query(Unique)) == OTHERS
    finally:
        for name, hook in hooks:
            event.remove(Session, name, hook)
    assert sorted(one for one in told if one[0] == "commit") == [("commit", name) for name in OTHERS]
    assert ("rollback", CULPRIT) in told


# ---------------------------------------------------------------- connections that die


def close(db: Session) -> None:
    driver: Any = db.connection().connection.driver_connection
    driver.close()


def invalidate(db: Session) -> None:
    db.connection().connection.invalidate()


def terminate(db: Session) -> None:
    db.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


@ISOLATIONS
@pytest.mark.parametrize(
    ("database", "deed"),
    [
        on("sqlite", close),
        on("sqlite", invalidate),
        on("postgresql", close),
        on("postgresql", invalidate),
        on("postgresql", terminate),
    ],
)
def test_a_handler_that_ends_its_connection_is_charged(
    app: App, orders: Channel[Order], request: pytest.FixtureRequest, isolate: Any, database: str, deed: Deed
) -> None:
    runs: list[str] = []

    @app.flow(orders, retry=RetryPolicy(attempts=2, first="10ms", factor=1, jitter=0), isolate=isolate)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            runs.append(order.name)
            deed(db)

    with running(app, request.getfixturevalue(database)) as harness:
        for name in NAMES:
            harness.publish(orders, Order(name=name, deed="x" if name == CULPRIT else ""))
        for _ in range(2 * DEATHS + 2):
            try:
                harness.advance("1s")
            except FlowKitError:
                """The store seems to be away: a worker tries again."""
        once(harness, *OTHERS)
        (letter,) = harness.dead()
        assert letter.attempts == 2
        assert f"its connection died {DEATHS} times as the message ran alone" in letter.error
        assert len(runs) >= 2 * DEATHS


def leave_a_copy_open(driver: Any) -> Any:
    copy = driver.cursor().copy("COPY effects (name) FROM STDIN")
    copy.__enter__()
    return copy


def leave_a_stream_open(driver: Any) -> Any:
    rows = driver.cursor().stream("SELECT generate_series(1, 100000)")
    next(rows)
    return rows


def leave_a_pipeline_open(driver: Any) -> Any:
    pipeline = driver.pipeline()
    pipeline.__enter__()
    driver.execute("INSERT INTO effects (name) VALUES ('unseen')")
    return pipeline


@pytest.mark.postgresql
@pytest.mark.parametrize("deed", [leave_a_copy_open, leave_a_stream_open, leave_a_pipeline_open])
def test_a_handler_that_leaves_a_command_of_the_driver_open_is_charged(
    app: App, orders: Channel[Order], postgresql_url: str, deed: Callable[[Any], Any]
) -> None:
    left: list[Any] = []

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            left.append(deed(db.connection().connection.driver_connection))

    with running(app, postgresql_url) as harness:
        for name in NAMES:
            harness.publish(orders, Order(name=name, deed="x" if name == CULPRIT else ""))
        for _ in range(DEATHS + 1):
            with suppress(FlowKitError):  # the store seems to be away: a worker tries again
                harness.advance("1s")
        once(harness, *OTHERS)
        (letter,) = harness.dead()
        assert "left a COPY, a stream or a pipeline of the driver open" in letter.error


@pytest.mark.parametrize(("database", "deed"), [on("sqlite", close), on("postgresql", close)])
def test_a_function_of_the_work_that_ends_its_connection_is_charged(
    app: App, orders: Channel[Order], request: pytest.FixtureRequest, database: str, deed: Deed
) -> None:
    @app.flow(orders, retry=RetryPolicy(attempts=2, first="10ms", factor=1, jitter=0))
    async def accept(order: Order, work: UnitOfWork) -> None:
        def write(db: Session, outbox: Outbox) -> None:
            db.add(Effect(name=order.name))
            if order.deed:
                deed(db)

        await work.run(write)

    with running(app, request.getfixturevalue(database)) as harness:
        for name in NAMES:
            harness.publish(orders, Order(name=name, deed="x" if name == CULPRIT else ""))
        for _ in range(2 * DEATHS + 2):
            harness.advance("1s")
        once(harness, *OTHERS)
        (letter,) = harness.dead()
        assert letter.attempts == 2
        assert f"its connection died {DEATHS} times as the message ran alone" in letter.error


def commit_and_close(db: Session) -> None:
    driver: Any = db.connection().connection.driver_connection
    driver.commit()
    driver.close()


def commit_and_fail(db: Session) -> None:
    driver: Any = db.connection().connection.driver_connection
    driver.execute("COMMIT")
    driver.execute("BEGIN")
    raise ValueError("no")


@ISOLATIONS
@pytest.mark.parametrize("deed", [commit_and_close, commit_and_fail])
def test_row_50_a_commit_by_the_driver_loses_nothing_whatever_follows(
    app: App, orders: Channel[Order], database_url: str, isolate: Any, deed: Deed
) -> None:
    @app.flow(orders, retry=FAST, isolate=isolate, concurrency=1)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            db.flush()
            deed(db)

    with running(app, database_url) as harness:
        publish(harness, orders)
        assert "flow shop.accept is stopped" in harness.worker.lanes[0].stopped
        balance = harness.balances()["shop.accept"]
        assert balance.accepted == 10 == balance.applied + balance.dead + balance.pending
        assert balance.pending == 5


@ISOLATIONS
@pytest.mark.parametrize("wanted", [Connection, Objects])
def test_nothing_is_written_after_a_swallowed_error_by_other_ways(
    app: App, orders: Channel[Order], database_url: str, isolate: Any, wanted: type
) -> None:
    def accept(order: Order, db: Session, other: Any) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            swallow(db)
            if wanted is Objects:
                other.put("leak", 1)
            else:
                other.execute(text("INSERT INTO effects (name) VALUES ('leak')"))

    accept.__annotations__["other"] = wanted
    app.flow(orders, retry=FAST, isolate=isolate)(accept)
    with running(app, database_url) as harness:
        there(harness, "there")
        publish(harness, orders)
        once(harness, *OTHERS)
        assert len(harness.dead()) == 1
        with harness.session() as session:
            assert not session.scalar(text("SELECT count(*) FROM flowkit_objects"))


FLUSHES_BEFORE_TEXT = Version(sqlalchemy.__version__) >= Version("2.1")
"""Before, SQLAlchemy sent what a session holds only before statements that name classes."""


@ISOLATIONS
def test_a_message_sees_what_those_before_it_in_its_batch_added(
    app: App, orders: Channel[Order], database_url: str, isolate: Any
) -> None:
    seen: list[int] = []

    @app.flow(orders, isolate=isolate, concurrency=1)
    def accept(order: Order, db: Session, connection: Connection) -> None:
        way = (len(seen) % 3, text("SELECT count(*) FROM effects"))
        count = (
            connection.scalar(way[1])
            if way[0] == 0
            else db.scalar(way[1])
            if way[0] == 1
            else len(db.query(Effect).all())
        )
        seen.append(int(count))
        db.add(Effect(name=order.name))
        own = way[1] if FLUSHES_BEFORE_TEXT else select(func.count(Effect.name))
        assert db.scalar(own) == count + 1, "its own are sent first"

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *NAMES)
        assert seen == list(range(10))


def test_a_statement_by_which_sqlite_rolls_back_costs_its_message_only(
    app: App, orders: Channel[Order], sqlite_url: str
) -> None:
    @app.flow(orders, retry=FAST)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            db.execute(text("INSERT OR ROLLBACK INTO uniques (name) VALUES ('there')"))

    with running(app, sqlite_url) as harness:
        there(harness, "there")
        publish(harness, orders)
        once(harness, *OTHERS)
        (letter,) = harness.dead()
        assert "IntegrityError" in letter.error


@ISOLATIONS
def test_row_50_flowkits_own_savepoint_is_not_a_handlers(
    app: App, orders: Channel[Order], database_url: str, isolate: Any
) -> None:
    @app.flow(orders, retry=FAST, isolate=isolate)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            db.execute(text(f"ROLLBACK TO {TOKEN}"))

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *OTHERS)
        (letter,) = harness.dead()
        assert "a savepoint of FlowKit's own" in letter.error


def test_a_restart_of_the_database_charges_nobody(
    app: App, orders: Channel[Order], postgresql: Any, postgresql_url: str
) -> None:
    runs: list[str] = []

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        runs.append(order.name)
        if len(runs) <= DEATHS:
            db.flush()
            postgresql.restart()

    with running(app, postgresql_url) as harness:
        harness.publish(orders, Order(name="a"))
        for _ in range(DEATHS + 1):
            try:
                harness.until_quiet()
            except FlowKitError:
                """The database is away, as it is for a worker."""
        once(harness, "a")


def test_an_interrupt_in_a_handler_is_a_failure_of_its_message(
    app: App, orders: Channel[Order], database_url: str
) -> None:
    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            raise KeyboardInterrupt

    with running(app, database_url) as harness:
        worker = Worker(app, harness.services)
        for name in NAMES:
            harness.publish(orders, Order(name=name, deed="x" if name == CULPRIT else ""))
        thread = threading.Thread(target=worker.run)
        thread.start()
        wait = threading.Event()
        for _ in range(600):
            if harness.balances()["shop.accept"].pending == 0:
                break
            wait.wait(0.05)
        worker.stop()
        thread.join(30)
        assert not worker.crippled
        once(harness, *OTHERS)
        (letter,) = harness.dead()
        assert "KeyboardInterrupt" in letter.error


# ---------------------------------------------------------------- what is told, and what cannot be recorded


def test_a_failure_that_the_next_run_does_not_have_is_told(
    app: App, orders: Channel[Order], database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    failed: set[str] = set()

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed and order.name not in failed:
            failed.add(order.name)
            raise ValueError("only once")

    with running(app, database_url) as harness:
        publish(harness, orders)
        once(harness, *NAMES)
        (told,) = (record for record in caplog.records if "succeeded as its batch ran again" in record.message)
        assert "ValueError: only once" in told.getMessage()
        assert told.__dict__["message_id"] in told.getMessage()


def test_row_h1_a_failure_that_cannot_be_recorded_waits_and_is_told(
    app: App, orders: Channel[Order], database_url: str
) -> None:
    runs: list[str] = []

    @app.flow(orders, retry=RetryPolicy(attempts=1))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))
        if order.deed:
            runs.append(order.name)
            raise ValueError("no")

    with running(app, database_url) as harness:
        refuse = (
            ["CREATE TRIGGER refuse BEFORE INSERT ON flowkit_dead BEGIN SELECT RAISE(ABORT, 'not here'); END"]
            if database_url.startswith("sqlite")
            else [
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not here'; END $$",
                "CREATE TRIGGER refuse BEFORE INSERT ON flowkit_dead EXECUTE FUNCTION refuse()",
            ]
        )
        with harness.session() as session:
            for statement in refuse:
                session.execute(text(statement))
        for name in NAMES:
            harness.publish(orders, Order(name=name, deed="x" if name == CULPRIT else ""))
        for _ in range(3):
            with pytest.raises(FlowKitError, match=r"refuses to record .* flow shop\.accept: .*not here"):
                harness.until_quiet()
        once(harness, *OTHERS)
        assert len(runs) < 20
        with harness.session() as session:
            on = "" if database_url.startswith("sqlite") else " ON flowkit_dead"
            session.execute(text(f"DROP TRIGGER refuse{on}"))
        harness.until_quiet()
        assert len(harness.dead()) == 1


# ---------------------------------------------------------------- the outbox of another program's session


def test_row_b4_an_outbox_that_is_kept_across_commits_sends_with_each(
    app: App, orders: Channel[Order], database_url: str
) -> None:
    @app.flow(orders)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    with running(app, database_url) as harness:
        engine = open_store(Settings(database_url=database_url)).dialect.engine
        with Session(engine) as session:
            outbox = app.outbox(session)
            for name in "abcd":
                outbox.send(orders, Order(name=name))
                session.commit()
            outbox.send(orders, Order(name="undone"))
            session.rollback()
        engine.dispose()
        harness.until_quiet()
        once(harness, *"abcd")
