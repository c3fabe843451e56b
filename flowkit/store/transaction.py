"""A transaction on one connection of the pool: its statements, which may wait for its end, and its commit."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy.pool import PoolProxiedConnection

from flowkit.errors import CommitUnknown, StoreUnavailable, TransactionEnded
from flowkit.ports import Clock, Fence
from flowkit.store.dialect import Dialect, classify
from flowkit.store.encoding import Row
from flowkit.store.residue import TOKEN, Residue

ENDED = "a handler ended the transaction by the driver and began another"


class Transaction:
    """Sends FlowKit's own statements to the driver. With a `fence`, it commits only while the group of the fence is
    active. With `begun`, the transaction is the caller's own, and the caller commits it."""

    def __init__(
        self,
        dialect: Dialect,
        pooled: PoolProxiedConnection,
        flow: str,
        deadline: float,
        clock: Clock,
        fence: Fence | None = None,
        begun: bool = False,
    ) -> None:
        self.together = False
        self.waited = 0.0
        self.flow = flow
        self.engine = dialect.engine
        self.pooled = pooled
        self.sql = dialect.statements
        self.residue = 0
        """The residue of the handlers' statements that is not restored yet."""
        self._dialect = dialect
        self._clock = clock
        driver: Any = pooled.driver_connection
        self._driver, self._cursor = driver, driver.cursor()
        self._deadline = deadline
        self._fence = fence
        self._begun = begun
        self._gone = False
        self._waiting: list[tuple[str, list[Row]]] = []
        self._guarded = False
        """Whether handlers have used the transaction. A savepoint then shows whether they ended it."""
        self._met: BaseException | None = None

    @property
    def space(self) -> str:
        """The app: each app has its own objects."""
        return self.flow.split(".", 1)[0]

    @property
    def lost(self) -> bool:
        """Whether the connection is lost or closed."""
        return self._dialect.lost(self._driver)

    @property
    def shut(self) -> bool:
        return self._dialect.shut(self._driver)

    def token_gone(self, error: BaseException) -> bool:
        """Whether a statement failed because a savepoint is missing: a handler ended the transaction by the driver."""
        return self._dialect.token_gone(getattr(error, "orig", None) or error)

    @property
    def rolled_back(self) -> bool:
        """Whether the transaction, which was open, has ended. A local check: does not block."""
        return self._guarded and isinstance(self._dialect.broken(self._driver), TransactionEnded)

    def ground(self) -> list[Any]:
        """Return the settings by which the database finds FlowKit's tables: a handler may change them, unseen."""
        return self.read(self.sql.ground) if self.sql.ground else []

    # ------------------------------------------------------------ statements

    def begin(self) -> None:
        """Begin the transaction, if it has not begun."""
        if self._begun:
            return
        since = self._clock.monotonic()
        try:
            self._dialect.begin(self._driver, self._deadline)
        except Exception as error:
            if not self._dialect.lost(self._driver):
                raise classify(self._dialect, error, own=True) from error
            self._reconnect()
        self.waited += self._clock.monotonic() - since
        self._begun = True

    def _reconnect(self) -> None:
        """Begin on a new connection: the pooled one died while it was idle, before any statement."""
        try:
            self.pooled.invalidate()
            self.pooled = self.engine.raw_connection()
            driver: Any = self.pooled.driver_connection
            self._driver, self._cursor = driver, driver.cursor()
            self._dialect.begin(self._driver, self._deadline)
        except Exception as error:
            raise classify(self._dialect, error, own=True) from error

    def _cause(self, error: BaseException, own: bool = True) -> BaseException:
        """Return the meaning of an error. If the database could not be reached, the connection is not used again."""
        cause = classify(self._dialect, error, own)
        if isinstance(cause, StoreUnavailable) and self._guarded and self._dialect.barred(error):
            # The handler may have caused that, unseen. If it did not, the record of this failure fails as well, and
            # then counts as StoreUnavailable.
            cause = RuntimeError(
                f"FlowKit's own statement failed after the handler: {error}; did it change a role, a path or the "
                "transaction's mode? @app.flow(…, settings=True) puts settings back"
            )
        self._met = cause
        self._gone = isinstance(cause, StoreUnavailable)
        return cause

    def _execute(self, statement: str, parameters: Sequence[object] = ()) -> None:
        try:
            self._cursor.execute(statement, parameters)
        except Exception as error:
            raise self._cause(error) from error

    def read(self, statement: str, parameters: Sequence[object] = ()) -> list[Any]:
        """Return the rows of a query, which sees all earlier writes. Blocks."""
        self.send()
        self._execute(statement, parameters)
        try:
            return list(self._cursor.fetchall())
        except Exception as error:  # SQLite runs a statement further with each fetch
            raise self._cause(error) from error

    def write(self, statement: str, rows: Iterable[Row]) -> None:
        """Run a statement once for each row of parameters, with the commit at the latest."""
        rows = list(rows)
        if self._waiting and self._waiting[-1][0] == statement:
            self._waiting[-1][1].extend(rows)
        elif rows:
            self._waiting.append((statement, rows))

    def send(self) -> None:
        """Run the waiting statements. If they wait until the end, they and the commit take one round trip."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            self.begin()
        for statement, rows in waiting:
            try:
                self._dialect.execute(self._cursor, statement, rows)
            except Exception as error:
                # A handler's statement may be among those that wait. Before the commit, all of them have been sent.
                raise self._cause(error, own=not self.together) from error

    def restore(self) -> None:
        """Restore the settings that a handler changed, before FlowKit itself writes."""
        self.send()
        try:
            self._dialect.restore(self._driver, self._deadline)
        except Exception as error:
            raise self._cause(error) from error
        self.residue &= ~Residue.SETTING

    # ------------------------------------------------------------ its end

    def _commit(self) -> None:
        """Send the waiting statements and commit, in one round trip."""
        try:
            with self._dialect.pipelined(self._driver):
                self.send()
                if self._fence is not None:
                    self._dialect.fence(self._cursor, self._fence.key)
                self._dialect.commit(self._driver, TOKEN if self._guarded else None)
        except Exception as error:
            met = error.__cause__ if isinstance(error, StoreUnavailable) and error.__cause__ else error
            cause = self._cause(error)
            if isinstance(cause, StoreUnavailable) and not self._dialect.denied(self._driver, met):
                raise CommitUnknown(str(cause)) from error
            if cause is error and self._dialect.token_gone(error):
                raise TransactionEnded(ENDED) from error
            raise cause from error
        self._begun = False

    def _return(self) -> None:
        """Undo uncommitted writes, and return the connection to the pool; discard a broken one. Never raises."""
        with suppress(Exception):  # raises if the connection is closed
            self._cursor.close()
        dialect = self._dialect
        kept = not self._gone and not dialect.lost(self._driver) and (not self._begun or self._rolled_back())
        if kept and (not self.residue & (Residue.LASTING | Residue.DRIVER) or self._cleansed()):
            self.pooled.close()
        else:
            dialect.discard(self._driver)
            if self.pooled.is_valid:  # SQLAlchemy may have invalidated it already
                self.pooled.invalidate()

    def _cleansed(self) -> bool:
        """Remove what handlers left on the connection, and return whether that succeeded."""
        try:
            return self._dialect.cleanse(self._driver, bool(self.residue & Residue.DRIVER))
        except Exception:
            return False

    def _rolled_back(self) -> bool:
        """Undo uncommitted writes, and return whether that succeeded. The pool would log a failure as an error."""
        try:
            self._driver.rollback()
        except Exception:
            return False
        return True
