"""The store on a SQL database: units of work, message rows and the schema. The dialect says what differs."""

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol
from weakref import WeakSet

from pydantic_core import to_json
from sqlalchemy import Connection, Engine, MetaData, event, inspect, select
from sqlalchemy.engine.reflection import ObjectKind
from sqlalchemy.orm import Session

from flowkit.disclosure import told
from flowkit.errors import ConfigError, StoreOutdated
from flowkit.fork import refuse_child
from flowkit.message import Message, new_id
from flowkit.ports import (
    Asked,
    Clock,
    Delivery,
    Fence,
    Figures,
    Identity,
    Ids,
    Objects,
    Pending,
    Retention,
    Rollout,
    Standing,
    WorkerInfo,
)
from flowkit.store import tables
from flowkit.store.dead import DeadLetters
from flowkit.store.fleet import Fleet
from flowkit.store.groups import Groups
from flowkit.store.guard import watch
from flowkit.store.keyring import Keyring
from flowkit.store.ledger import Ledger
from flowkit.store.place import Place
from flowkit.store.retention import Cleaner
from flowkit.store.rollouts import Rollouts
from flowkit.store.statements import Statements
from flowkit.store.subscribers import Subscribers
from flowkit.store.unit import MICROSECOND, Row, SqlUnit, read_message, seconds

NOTIFIES = "flowkit.notifies"
"""Marks a session whose commit wakes the workers."""
QUIET_MICROSECONDS = 5_000_000
"""A worker that has not told so for longer is not taken to be ready."""
OUTAGE_MICROSECONDS = 3_000_000
"""No ready worker told so for longer than this: an outage."""
PUBLISHERS = "publishers"
"""The name in the inbox, no flow's and no channel's, under which apps without flows are announced."""
SHORT_SECONDS = 30.0
"""The deadline of the store's own short transactions."""
_log = logging.getLogger("flowkit.store")


class Dialect(Protocol):
    """What differs between databases. `connection` is always the driver's own."""

    name: str
    serial: bool
    engine: Engine
    statements: Statements
    error: type[Exception]
    """The driver's errors."""
    private: bool
    """Whether what is left on a connection ends with it, because nobody shares its session at the server."""

    def begin(self, connection: Any, deadline: float) -> None:
        """Begin a transaction that the server ends some seconds after `deadline`."""

    def broken(self, connection: Any) -> BaseException | None:
        """Why the transaction cannot go on, by a local look."""

    def lost(self, connection: Any) -> bool:
        """Whether the connection is gone."""

    def shut(self, connection: Any) -> bool:
        """Whether this process itself has closed the connection."""

    def denied(self, connection: Any, error: BaseException) -> bool:
        """Whether a commit that failed like this did not happen: the database itself said so."""

    def discard(self, connection: Any) -> None:
        """Close a connection that is not used again. Never waits for a server that may be gone."""

    def restore(self, connection: Any, deadline: float) -> None:
        """Put back the settings and the role of an open transaction; those of `begin` hold again."""

    def cleanse(self, connection: Any, exposed: bool) -> bool:
        """Remove what handlers left on a connection, outside of a transaction. False when it has to be discarded.
        `exposed`: a handler had the driver's connection in hand."""

    def classify(self, error: BaseException, own: bool = False) -> BaseException:
        """The StoreConflict or StoreUnavailable that an error means; else the error. Of a statement of FlowKit's `own`
        that is also what would be a handler's failure."""

    def barred(self, error: BaseException) -> bool:
        """Whether a statement failed for what a handler can have set for its transaction: a role, a path, a mode."""

    def place(self, connection: Any) -> str:
        """Which database this is, as parts with a slash between; empty where a copy cannot be told from it."""

    def adopt(self, connection: Any) -> None:
        """Prepare a connection that somebody else opened: a transaction is open on it, also if it is in autocommit."""

    def pipelined(self, connection: Any) -> AbstractContextManager[object]:
        """Send statements without waiting for each one's result, where the driver can. Errors come at its end."""

    def plain(self, statement: str) -> bool:
        """Whether a statement of a handler gains by waiting for others like it, and is seen to have no result."""

    def execute(self, cursor: Any, statement: str, rows: Sequence[Row]) -> None:
        """Execute a statement once for each row of parameters, of which there is one at least."""

    def staging(self, rows: list[tuple[Any, ...]]) -> list[tuple[str, list[Row]]]:
        """What writes these message rows: statements, each with its rows of parameters."""

    def fence(self, cursor: Any, key: tuple[str, str, int]) -> None:
        """See that a group is active, and stays so until this transaction's end. What fails is Fenced when classified;
        in a pipeline it comes at its end."""

    def commit(self, connection: Any, token: str | None) -> None:
        """Commit, if the savepoint `token` is still there. Refuses, and does not commit, when it is gone."""

    def doubtful(self, connection: Any) -> bool:
        """Whether a commit succeeded here, but may be gone after a failover."""

    def token_gone(self, error: BaseException) -> bool:
        """Whether a commit was refused because the savepoint is gone."""

    def monotonic(self) -> float:
        """Seconds by a clock that nobody can set, to compare the database's clock with."""

    def wait(self, seconds: float) -> set[str] | None:
        """Block until another connection may have committed, at most so long. The flows told; None: unknown."""

    def notify(self, flows: Collection[str]) -> None:
        """Wake those who wait for these flows."""

    def hold(self, worker: str) -> bool:
        """Hold a lock until this process dies; whether others can rely on it."""

    def gone(self, worker: str) -> bool:
        """Whether that lock is free."""

    def forget(self, worker: str) -> None:
        """Release that lock."""

    def upgrading(self) -> AbstractContextManager[Connection]:
        """A connection in a transaction beside which nobody else upgrades the schema. Raises ConfigError, which names
        what is missing, or StoreUnavailable."""

    def check_place(self) -> None:
        """Raise StoreLost where the database that was opened has been taken away."""

    def doubts(self) -> list[str]:
        """Warnings of how the database is reached. Blocks; raises what a connection raises."""

    def audit(self) -> list[str]:
        """Remarks on the rights with which the database is reached. Blocks; raises what a connection raises."""

    def tidy(self) -> None:
        """Regular upkeep of the database."""

    def close(self) -> None:
        """Release every connection."""


class SqlStore:
    """Implements ports.Store. Thread-safe; a unit belongs to the thread that opened it."""

    injects: Mapping[type, str] = {
        Session: "an ORM session of the unit of work",
        Connection: "a connection of the unit of work",
        Objects: "a durable key-value store of the app",
    }
    session: type = Session

    def __init__(self, dialect: Dialect, clock: Clock, ids: Ids = new_id) -> None:
        self.dialect = dialect
        self.serial = dialect.serial
        self.sql = dialect.statements
        self.clock = clock
        self.ids = ids
        self.dead_letters = DeadLetters(self)
        self.ledger = Ledger(self)
        self.subscribers = Subscribers(self)
        self.place = Place(self)
        self.keyring = Keyring(self)
        self.fence: Fence | None = None
        self.version = ""
        self._fleet = Fleet(self)
        self._groups = Groups(self)
        self._rollouts = Rollouts(self)
        self._cleaner = Cleaner(self)
        self._joined: WeakSet[Engine] = WeakSet()
        self._process = os.getpid()
        watch(dialect.engine)

    # ------------------------------------------------------------ units

    @contextmanager
    def unit(
        self, flow: str, deadline: float = SHORT_SECONDS, lane: str = "", fenced: bool = True
    ) -> Iterator[SqlUnit]:
        refuse_child(self._process)
        try:
            pooled = self.dialect.engine.raw_connection()
        except Exception as error:
            raise self.classify(error, own=True) from error
        unit = SqlUnit(self, pooled, flow, deadline, lane or flow, fence=self.fence if fenced else None)
        try:
            yield unit
        finally:
            unit.end()

    @contextmanager
    def transaction(self, fenced: bool = True) -> Iterator[SqlUnit]:
        """A short transaction of the store's own, committed at the end. What is not `fenced` counts in any case."""
        with self.unit("", fenced=fenced) as unit:
            yield unit
            unit.commit()

    def join(self, session: object, lane: str) -> SqlUnit:
        if not isinstance(session, Session):
            raise ConfigError(
                f"app.outbox() takes a sqlalchemy.orm.Session, not {type(session).__name__}; inside an AsyncSession, "
                "use session.sync_session in session.run_sync()"
            )
        session.flush()
        connection = session.connection()
        if not self._holds(connection.engine):
            raise ConfigError(
                "app.outbox(session): the session writes to another database than FLOWKIT_DATABASE_URL, so that one "
                "transaction cannot cover both; use a session on the store's database, or app.publish() after commit"
            )
        self.dialect.adopt(connection.connection.driver_connection)
        if NOTIFIES not in session.info:
            session.info[NOTIFIES] = True
            event.listen(session, "after_commit", self._after_commit)
        return SqlUnit(self, connection.connection, "", SHORT_SECONDS, lane, begun=True)

    def _after_commit(self, session: Session) -> None:
        if not session.in_nested_transaction():  # a released savepoint is no commit
            self.notify(())

    def _holds(self, engine: Engine) -> bool:
        """Whether an engine reaches the database of this store. Asked once for each engine."""
        if engine not in self._joined:
            try:
                with engine.connect() as connection:
                    if not inspect(connection).has_table(tables.meta.name):
                        return False
                    theirs = connection.execute(select(tables.meta.c.value).where(tables.meta.c.name == "store"))
                    if theirs.scalar() != self.identity():
                        return False
            except Exception as error:
                raise self.classify(error, own=True) from error
            self._joined.add(engine)
        return True

    def identity(self) -> str:
        """The id of this store, made with its schema."""
        with self.unit("") as unit:
            return str(unit.read("SELECT value FROM flowkit_meta WHERE name = 'store'")[0][0])

    def key(self) -> bytes:
        with self.unit("") as unit:
            found = unit.read("SELECT value FROM flowkit_meta WHERE name = 'key'")
        if not found:
            raise ConfigError("the store of FLOWKIT_DATABASE_URL has no key; run: flowkit db upgrade")
        return bytes.fromhex(found[0][0])

    def now(self) -> float:
        with self.unit("") as unit:
            return float(unit.read(self.sql.now)[0][0]) / MICROSECOND

    def started(self) -> str:
        with self.unit("") as unit:
            return str(unit.read(self.sql.started)[0][0])

    def check_place(self) -> None:
        self.dialect.check_place()

    def doubts(self) -> list[str]:
        """Warnings of how the database is reached. Blocks. Raises StoreUnavailable."""
        try:
            return self.dialect.doubts()
        except Exception as error:
            raise self.classify(error, own=True) from error

    def audit(self) -> list[str]:
        """Remarks on the rights with which the database is reached. Blocks. Raises StoreUnavailable."""
        try:
            return self.dialect.audit()
        except Exception as error:
            raise self.classify(error, own=True) from error

    def classify(self, error: BaseException, own: bool = False) -> BaseException:
        inner = getattr(error, "orig", None) or error
        cause = self.dialect.classify(inner, own)
        return error if cause is inner else cause

    # ------------------------------------------------------------ message rows

    def lease(self, flow: str, limit: int, worker: str, seconds: float) -> list[Delivery]:
        with self.unit(flow) as unit:
            if self.fence is not None or self.serial:
                unit.begin()  # else it is one statement, and a transaction by itself
            rows = unit.read(self.sql.lease, (flow, limit, int(seconds * MICROSECOND), worker))
            unit.commit()
        # RETURNING has no order; row ids are UUIDv7, so that this one is the order of staging.
        return [_delivery(row) for row in sorted(rows, key=lambda row: str(row[0]))]

    def renew(self, rows: Collection[tuple[str, int]], seconds: float) -> None:
        with self.transaction() as unit:
            unit.write(self.sql.renew, [(int(seconds * MICROSECOND), *row) for row in sorted(rows)])

    def release(self, rows: Collection[tuple[str, int]]) -> None:
        with self.transaction() as unit:
            unit.write(self.sql.release, sorted(rows))

    def park(self, rows: Mapping[tuple[str, int], str], seconds: float) -> None:
        with self.transaction() as unit:
            unit.write(self.sql.park, [(int(seconds * MICROSECOND), rows[row], *row) for row in sorted(rows)])

    def unpark(self, flows: Collection[str]) -> None:
        with self.transaction() as unit:
            unit.write(self.sql.unpark, [(_names(flows),)])

    def due(self, flows: Collection[str] | None = None) -> set[str]:
        with self.unit("") as unit:
            found = unit.read(self.sql.due_of_all) if flows is None else unit.read(self.sql.due, (_names(flows),))
            return {flow for (flow,) in found}

    def wait(self, seconds: float) -> set[str] | None:
        return self.dialect.wait(seconds)

    def notify(self, flows: Collection[str]) -> None:
        try:
            self.dialect.notify(flows)
        except Exception as error:
            # What was committed stays so; those who wait poll, and find it a second later.
            _log.warning("could not wake the other workers: %s", told(self.classify(error)))

    # ------------------------------------------------------------ the fleet

    def subscribe(self, subscriptions: Mapping[str, str]) -> None:
        with self.transaction() as unit:
            unit.write(self.sql.subscribe, sorted(subscriptions.items()))

    def subscriptions(self) -> dict[str, str]:
        """flow -> channel, of every app."""
        with self.unit("") as unit:
            return dict(unit.read("SELECT flow, channel FROM flowkit_subscriptions WHERE channel <> '' ORDER BY flow"))

    def announce(self, app: str) -> None:
        # In the inbox, where whoever publishes may write, the name is claimed like an id.
        with self.transaction(fenced=False) as unit:
            unit.claim([Delivery(Message("", app, "", b""), PUBLISHERS)])

    def publishers(self) -> list[str]:
        with self.unit("") as unit:
            return [app for (app,) in unit.read(f"SELECT source FROM flowkit_inbox WHERE flow = '{PUBLISHERS}'")]

    def replies(self, app: str, requests: Collection[Asked]) -> dict[Asked, bytes]:
        with self.unit("") as unit:
            rows = unit.read(self.sql.get_replies, (to_json([(app, *one) for one in requests]).decode(),))
        return {Asked(*asked): bytes(reply) for *asked, reply in rows}

    def states(self, identities: Collection[Identity]) -> dict[Identity, str]:
        with self.unit("") as unit:
            rows = unit.read(self.sql.look, (to_json(sorted(identities)).decode(),))
        return {(flow, source, id): tables.STATES[state] for flow, source, id, state, *_ in rows}

    def direct(self, what: str, names: Collection[str], value: int | None) -> None:
        with self.transaction() as unit:
            if value is None:
                unit.write(self.sql.leave_alone, [(what, name) for name in sorted(names)])
            else:
                unit.write(self.sql.direct, [(what, name, value) for name in sorted(names)])

    def directions(self) -> dict[tuple[str, str], int]:
        with self.unit("") as unit:
            rows = unit.read("SELECT what, name, value FROM flowkit_directions")
        return {(what, name): value for what, name, value in rows}

    def ready(self, app: str) -> int:
        with self.unit("") as unit:
            return int(unit.read(self.sql.ready, (app, QUIET_MICROSECONDS))[0][0])

    def note_up(self, app: str) -> None:
        with self.transaction() as unit:
            unit.write(self.sql.up_anew, [(app, app, OUTAGE_MICROSECONDS)])
            unit.write(self.sql.up_still, [(app, OUTAGE_MICROSECONDS)])

    def uptime(self, app: str, seconds: float) -> list[tuple[float, float]]:
        with self.unit("") as unit:
            rows = unit.read(self.sql.uptime, (app, app, int(seconds * MICROSECOND)))
        return [(float(since), float(until)) for since, until in rows]

    def stand(self, app: str, group: str, seconds: float, ready: bool) -> Standing | None:
        return self._groups.stand(app, group, seconds, ready)

    def step_down(self, app: str, group: str, silent: float) -> None:
        self._groups.step_down(app, group, silent)

    def standing(self, app: str) -> Standing | None:
        return self._groups.standing(app)

    def pending(self, flows: Collection[str]) -> Pending:
        mine = [one for flow, one in self.ledger.backlog().items() if flow in flows]
        return Pending(sum(one.due + one.leased for one in mine), sum(one.delayed + one.parked for one in mine))

    def unfinished(self, flows: Collection[str]) -> int:
        return sum(one.accepted - one.ended for flow, one in self.ledger.balances().items() if flow in flows)

    def charge(self, identity: Identity, worker: str, late: bool) -> None:
        with self.transaction() as unit:
            unit.write(self.sql.charge, [(int(late), *identity, worker, worker)])

    def venture(self, suspect: Delivery, worker: str) -> None:
        with self.transaction() as unit:
            before = [one for (one,) in unit.read(self.sql.ventured, suspect.identity) if one != worker]
            dead = before[0] if before and self._fleet.is_gone(before[0]) else None
            unit.write(self.sql.venture, [(*suspect.identity, suspect.generation, suspect.attempts, worker, dead)])

    def desist(self, identity: Identity, worker: str) -> None:
        with self.transaction() as unit:
            unit.write(self.sql.desist, [(*identity, worker)])

    def join_fleet(self, worker: WorkerInfo, epoch: int = 0) -> None:
        self._fleet.join(worker, epoch)

    def is_staffed(self, app: str) -> bool:
        return self._fleet.is_staffed(app)

    def is_gone(self, worker: str) -> bool:
        """Whether a worker is dead, or has left."""
        return self._fleet.is_gone(worker)

    def members(self) -> set[str]:
        return {one.id for one in self.ledger.workers()}

    def beat(self, worker: str, state: str, epoch: int = 0, figures: Figures | None = None) -> None:
        self._fleet.beat(worker, state, epoch, figures or Figures())

    def rollout(self, app: str, silent: float) -> Rollout | None:
        return self._rollouts.read(app, silent)

    def enter(self, app: str, version: str, silent: float) -> Rollout | None:
        return self._rollouts.enter(app, version, silent)

    def change(self, app: str, flows: Collection[str], rollout: Rollout) -> None:
        self._rollouts.change(app, flows, rollout)

    def leave_fleet(self, worker: str) -> None:
        self._fleet.leave(worker)

    def clean(self, policy: Retention, holder: str) -> int:
        return self._cleaner.clean(policy, holder)

    def close(self) -> None:
        self.dialect.close()

    # ------------------------------------------------------------ schema

    def create_schema(self) -> None:
        """Create the schema, or bring it up to this version. Safe when several processes start at once."""
        with self.dialect.engine.connect() as connection:
            known = _version(connection)
            if known is None:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                if _version(connection) is None:
                    tables.metadata.create_all(connection)
                    connection.execute(tables.version.insert().values(version_num=tables.VERSION))
                    made = {"store": self.ids(), "oldest": tables.OLDEST, "key": tables.new_key()}
                    connection.execute(tables.keys.insert(), tables.first_key())
                    connection.execute(
                        tables.meta.insert(), [{"name": name, "value": value} for name, value in made.items()]
                    )
                connection.exec_driver_sql("COMMIT")
        if known is not None and known < tables.VERSION:
            self.upgrade()
        self.check_schema()

    def check_schema(self) -> None:
        """Raise ConfigError unless the schema is of this version, or a later one that this one's code can work on;
        StoreOutdated where a run brings it up to this version, as on SQLite."""
        try:
            with self.dialect.engine.connect() as connection:
                known = _version(connection)
                fits = known == tables.VERSION or (known or "") > tables.VERSION >= _oldest(connection)
        except Exception as error:
            raise self.classify(error, own=True) from error
        if not fits:
            has = "has no FlowKit schema" if known is None else f"has FlowKit schema {known}"
            self.close()
            raise (StoreOutdated if self.serial and (known or "") < tables.VERSION else ConfigError)(
                f"the database of FLOWKIT_DATABASE_URL {has}, and this version needs {tables.VERSION}; "
                "run: flowkit db upgrade"
            )

    def upgrade(self) -> str:
        """Run the migrations, after those who do so now. Returns the version reached. Raises ConfigError where the
        database refuses them."""
        from flowkit.store.migrations import upgrade

        with self.dialect.upgrading() as connection:
            upgrade(connection, self.ids)
        return tables.VERSION

    def create(self, metadata: Any) -> None:
        if isinstance(metadata, MetaData) and self.dialect.name == "sqlite":
            try:
                with self.dialect.engine.connect() as connection:
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                    metadata.create_all(connection)
                    connection.exec_driver_sql("COMMIT")
            except Exception as error:
                raise self.classify(error) from error

    def check_tables(self, app: str, metadata: Any) -> None:
        """Raise ConfigError where tables of an app are missing which nobody creates when it starts, or lack a column:
        every message that writes there would fail."""
        if not isinstance(metadata, MetaData):
            return
        try:
            with self.dialect.engine.connect() as connection:
                found = _columns(connection, metadata)
        except Exception as error:
            raise self.classify(error, own=True) from error
        missing = [one.fullname for one in metadata.sorted_tables if one.fullname not in found]
        if missing and self.dialect.name != "sqlite":
            raise ConfigError(
                f"app {app} has tables that are not in the database of FLOWKIT_DATABASE_URL: {', '.join(missing)}; "
                "create them by your migrations, or by metadata.create_all(engine): FlowKit does only on SQLite"
            )
        fold = str.lower if self.dialect.name == "sqlite" else str  # to whom the case means nothing
        lacking = [
            f"{table.fullname}.{column.name}"
            for table in metadata.sorted_tables
            for column in table.columns
            if table.fullname in found
            and not column.system
            and fold(column.name) not in map(fold, found[table.fullname])
        ]
        if lacking:
            raise ConfigError(
                f"app {app} has columns that are not in the database of FLOWKIT_DATABASE_URL: {', '.join(lacking)}; "
                "add them by your migrations (ALTER TABLE … ADD COLUMN …): FlowKit changes no table that is there"
            )


def _columns(connection: Connection, metadata: MetaData) -> dict[str, set[str]]:
    """The columns of those tables and views of an app that are there, by the table's full name."""
    look, found = inspect(connection), {}
    for schema in {table.schema for table in metadata.sorted_tables}:
        names = {table.name: table.fullname for table in metadata.sorted_tables if table.schema == schema}
        columns = look.get_multi_columns(schema, filter_names=list(names), kind=ObjectKind.ANY)
        for (_, name), those in columns.items():
            found[names[name]] = {one["name"] for one in those}
    return found


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(tables.version.name):
        return None
    found = connection.execute(tables.version.select()).scalar()
    return None if found is None else str(found)


def _oldest(connection: Connection) -> str:
    """The oldest version whose code can work on this schema."""
    found = connection.execute(select(tables.meta.c.value).where(tables.meta.c.name == "oldest")).scalar()
    return str(found or tables.VERSION)


def _names(names: Collection[str]) -> str:
    return to_json([[name] for name in sorted(names)]).decode()


def _delivery(row: Any) -> Delivery:
    return Delivery(
        message=read_message(row[2:12]),
        flow=row[1],
        generation=row[12],
        attempts=row[13],
        deliveries=row[14],
        staged=seconds(row[15]),
        row=row[0],
    )
