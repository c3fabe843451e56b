"""The handlers' part of a transaction: their savepoints, their errors, and the objects that they share."""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, NoReturn
from weakref import WeakSet

from sqlalchemy.pool import PoolProxiedConnection

from flowkit.errors import Apart, CommitUnknown, StoreConflict, StoreUnavailable, TransactionEnded
from flowkit.ports import Clock, Fence
from flowkit.store.dialect import SWALLOWED, Dialect, classify
from flowkit.store.encoding import Row
from flowkit.store.flushed import Flushed
from flowkit.store.handler_session import HandlerConnection, HandlerSession, Watcher, hooked
from flowkit.store.residue import OWN, TOKEN
from flowkit.store.transaction import ENDED, Transaction

_log = logging.getLogger("flowkit.store")


class HandledTransaction(Transaction):
    """A transaction in which handlers work. Each handler gets an Access to it."""

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
        super().__init__(dialect, pooled, flow, deadline, clock, fence, begun)
        self.alone = True
        self.settings = False
        self.opening: Callable[[], None] | None = None
        self.private = dialect.private
        self.refusals = (dialect.error, StoreConflict, StoreUnavailable)
        """The errors by which the database, or FlowKit on its behalf, refuses a handler's statement."""
        self.failure: BaseException | None = None
        """The last refusal."""
        self.undone = False
        """Whether a session rolled the transaction back, because a flush failed."""
        self.sessions: list[HandlerSession] = []
        """The sessions with listeners to the end of the transaction."""
        self.spare: HandlerConnection | None = None
        """The connection that the next handler can use."""
        self.common: HandlerSession | None = None
        """The session that flushes the objects that messages only added, for all of them together."""
        self.flushed = Flushed()
        """The flushed objects of handlers that did not fail."""
        self.cursors: WeakSet[Any] | None = WeakSet() if dialect.serial else None
        """The cursors of handlers, on SQLite, where an open cursor keeps its statement running."""
        self._failed: BaseException | None = None

    @cached_property
    def hooked(self) -> bool:
        return hooked()

    def touch(self, follow: Callable[[], None]) -> None:
        """Begin the transaction for a handler, and set the savepoint that shows whether the handler ends it.

        This calls `follow` when the transaction has begun, perhaps on another connection.
        """
        if self._failed is not None:
            raise self._failed
        if self._guarded:
            return
        try:
            self.begin()
            follow()
            if self.opening is not None:
                self.opening()
            self._execute(f"SAVEPOINT {TOKEN}")
        except BaseException as error:
            self.fail(error)
        self._guarded = True

    def fail(self, error: BaseException) -> NoReturn:
        """Raise this error, now and at each later use: a handler that catches it can neither write nor succeed."""
        self._failed = error
        raise error

    def flush_common(self, access: Watcher | None = None) -> None:
        """Flush the objects that messages only added, before another message can read them."""
        common = self.common
        if common is not None and access is not common.access and self._guarded and common.new:
            common.flush()

    def lend(self, access: Watcher) -> HandlerConnection:
        """Return the connection that the messages of this unit use one after another."""
        spare, self.spare = self.spare, None
        if spare is None:
            return HandlerConnection(self.engine, self.pooled, access)
        spare.access = access
        return spare

    def close_cursors(self) -> None:
        """Close the cursors that a handler left open. An open result, kept by the traceback of an error for example,
        would block SQLite's commit, and any new transaction after another connection's commit."""
        for cursor in list(self.cursors or ()):
            with suppress(Exception):  # a thread is using it
                cursor.close()

    def set_own(self) -> None:
        """Begin the part of one message. It can be undone alone, whatever the handler does with its savepoints."""
        self.send()
        self._execute(f"SAVEPOINT {OWN}")

    def release_own(self) -> None:
        """Keep the part of one message."""
        self._execute(f"RELEASE SAVEPOINT {OWN}")

    def undo_own(self) -> None:
        """Undo the part of one message."""
        if self.undone:
            return
        try:
            self._execute(f"ROLLBACK TO SAVEPOINT {OWN}")
            self.release_own()
        except Exception as error:
            if self.token_gone(error):
                self.fail(TransactionEnded("the handler ended the transaction by the driver"))
            raise

    def postpone(self, statement: str, rows: Sequence[Row], plain: bool) -> bool:
        """Let a handler's plain INSERT wait, so that a batch takes one round trip. Returns whether it waits. Any other
        statement, or one in a handler's own savepoint, first sends those that wait."""
        wait = self.together and plain and self._dialect.plain(statement)
        if wait:
            self.write(statement, rows)
        if not wait or len(rows) > 1:  # a session that flushes several objects needs to know of a refusal
            self.send()
        return wait

    def broken(self) -> BaseException | None:
        if self._failed is not None:
            return self._failed
        if self.undone:
            return self.swallowed()
        broken = self._dialect.broken(self._driver) if self._guarded else None
        if isinstance(broken, RuntimeError):
            return self.swallowed()
        if isinstance(broken, StoreUnavailable):
            self._failed = broken  # the first check knows most
        return broken

    def ended(self, error: BaseException) -> BaseException | None:
        broken = self.broken()
        if isinstance(broken, Apart | StoreConflict | StoreUnavailable | TransactionEnded):
            return broken
        # Only errors of this transaction count: the handler may use other databases too.
        cause: BaseException | None = error
        seen: set[int] = set()  # `raise error from error` is possible
        while cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            if cause is self._met or getattr(cause, "orig", cause) is self.failure:
                met = classify(self._dialect, cause)
                return met if isinstance(met, StoreConflict | StoreUnavailable) else None
            cause = cause.__cause__
        return None

    def swallowed(self, failure: BaseException | None = None) -> BaseException:
        """Return the error for a handler that caught a database error: a conflict, after which the work runs again, or
        the handler's own failure."""
        failure = failure or self.failure
        cause = classify(self._dialect, failure) if failure is not None else None
        if not isinstance(cause, StoreConflict | StoreUnavailable):
            return RuntimeError(SWALLOWED)
        self._met = cause
        return cause

    def check(self) -> None:
        if self.undone or not self._guarded:
            return
        try:
            self._cursor.execute(f"ROLLBACK TO SAVEPOINT {TOKEN}")
        except Exception as error:  # everything is undone in any case
            if self.token_gone(error):
                raise TransactionEnded(ENDED) from error

    def flush(self) -> None:
        self.flush_common()
        self.send()

    # ------------------------------------------------------------ its end

    def commit(self) -> None:
        if not self._begun and not self._waiting:
            return
        self.begin()
        if self._guarded:
            broken = self.broken()
            if broken is not None:
                raise broken
        self._commit()
        self.flushed.clear()
        if self._dialect.doubtful(self._driver):
            self._gone = True
            raise CommitUnknown("the wait for the synchronous standby was cancelled: it may not have the commit")
        self._tell_all("after_commit")

    def end(self) -> None:
        """Undo uncommitted writes, and return the connection to the pool; discard a broken one. Never raises."""
        self._waiting.clear()
        self.spare = None  # it refers to this unit: without it, no garbage is left to collect
        common, self.common = self.common, None
        if common is not None:
            common.access.close()
        self._tell_all("after_rollback")
        self.flushed.undo()  # after a commit it is empty
        self._return()

    def tell(self, session: HandlerSession, event: str) -> None:
        """Call a session's listeners to the end of the transaction, and log their errors, which change nothing."""
        try:
            getattr(session.dispatch, event)(session)
        except Exception:
            _log.exception("flow %s: a listener to %s failed, which changes nothing", self.flow, event)

    def _tell_all(self, event: str) -> None:
        sessions, self.sessions = self.sessions, []
        for session in sessions:
            self.tell(session, event)
