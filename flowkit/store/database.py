"""The database of a store: its connections, transactions and clock, and the notification of waiting processes."""

import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from weakref import WeakSet

from sqlalchemy import Engine, event, inspect, select
from sqlalchemy.orm import Session
from sqlalchemy.pool import PoolProxiedConnection

from flowkit.disclosure import told
from flowkit.errors import ConfigError
from flowkit.fork import refuse_child
from flowkit.message import new_id
from flowkit.ports import Clock, Fence, Ids
from flowkit.store import tables
from flowkit.store.dialect import Dialect, classify
from flowkit.store.encoding import MICROSECOND
from flowkit.store.handler_session import watch
from flowkit.store.unit import SqlUnit

NOTIFIES = "flowkit.notifies"
"""The key in `Session.info` of a session whose commit wakes the workers."""
SHORT_SECONDS = 30.0
"""The deadline, in seconds, of the store's own short transactions."""
_log = logging.getLogger("flowkit.store")


class Database:
    """The database that all parts of a store share. Thread-safe; a unit belongs to the thread that opened it."""

    def __init__(self, dialect: Dialect, clock: Clock, ids: Ids = new_id) -> None:
        self.dialect = dialect
        self.sql = dialect.statements
        self.clock = clock
        self.ids = ids
        self.fence: Fence | None = None
        """See ports.Store."""
        self.version = ""
        """See ports.Store."""
        self._joined: WeakSet[Engine] = WeakSet()
        self._process = os.getpid()
        watch(dialect.engine)

    @contextmanager
    def unit(
        self, flow: str, deadline: float = SHORT_SECONDS, lane: str = "", fenced: bool = True
    ) -> Iterator[SqlUnit]:
        refuse_child(self._process)
        try:
            pooled = self.dialect.engine.raw_connection()
        except Exception as error:
            raise self.classify(error, own=True) from error
        unit = self._made(pooled, flow, deadline, lane or flow, self.fence if fenced else None)
        try:
            yield unit
        finally:
            unit.end()

    def _made(
        self,
        pooled: PoolProxiedConnection,
        flow: str,
        deadline: float,
        lane: str,
        fence: Fence | None = None,
        begun: bool = False,
    ) -> SqlUnit:
        return SqlUnit(
            self.dialect,
            pooled,
            flow,
            deadline,
            lane,
            clock=self.clock,
            ids=self.ids,
            version=self.version,
            fence=fence,
            begun=begun,
        )

    @contextmanager
    def transaction(self, fenced: bool = True) -> Iterator[SqlUnit]:
        """Open a short transaction of the store's own, and commit it at the end. Blocks.

        Unless it is `fenced`, it commits whichever group is active.
        """
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
        return self._made(connection.connection, "", SHORT_SECONDS, lane, begun=True)

    def _after_commit(self, session: Session) -> None:
        if not session.in_nested_transaction():  # a released savepoint is no commit
            self.notify(())

    def _holds(self, engine: Engine) -> bool:
        """Whether an engine reaches the database of this store. Asks once for each engine."""
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
        """The id of this store, created with its schema. Blocks."""
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
        """Return warnings about the connection to the database. Blocks. Raises StoreUnavailable."""
        try:
            return self.dialect.doubts()
        except Exception as error:
            raise self.classify(error, own=True) from error

    def audit(self) -> list[str]:
        """Return remarks on the database rights of this program. Blocks. Raises StoreUnavailable."""
        try:
            return self.dialect.audit()
        except Exception as error:
            raise self.classify(error, own=True) from error

    def classify(self, error: BaseException, own: bool = False) -> BaseException:
        return classify(self.dialect, error, own)

    def wait(self, seconds: float) -> set[str] | None:
        return self.dialect.wait(seconds)

    def notify(self, flows: Collection[str]) -> None:
        try:
            self.dialect.notify(flows)
        except Exception as error:
            # The commit stands. Waiting workers poll, and find it a second later.
            _log.warning("could not wake the other workers: %s", told(self.classify(error)))

    def close(self) -> None:
        self.dialect.close()
