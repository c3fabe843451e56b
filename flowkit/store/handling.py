"""The handlers' part of a transaction: their savepoints, their mistakes, and what they share."""

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
    """A transaction in which handlers work. Each of them gets an Access to it."""

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
        """The errors by which the database, or FlowKit in its place, refuses a statement of a handler."""
        self.failure: BaseException | None = None
        """The last one of those."""
        self.undone = False
        """Whether a session rolled the transaction back, because a flush failed."""
        self.sessions: list[HandlerSession] = []
        """Those that want to know how the transaction ends."""
        self.spare: HandlerConnection | None = None
        """The one that the next handler can use."""
        self.common: HandlerSession | None = None
        """The one that flushes what messages only added, for all of them together."""
        self.flushed = Flushed()
        """Of its handlers that did not fail."""
        self.cursors: WeakSet[Any] | None = WeakSet() if dialect.serial else None
        """The cursors of handlers, where one goes on working as it is asked for rows."""
        self._failed: BaseException | None = None

    @cached_property
    def hooked(self) -> bool:
        return hooked()

    def touch(self, follow: Callable[[], None]) -> None:
        """A handler uses the transaction: see to it that there is one and that its end is noticed.

        `follow` is called as soon as it has begun, perhaps on another connection.
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
        """Raise this, now and at each later use: the handler may catch it and go on, but neither write nor be done."""
        self._failed = error
        raise error

    def flush_common(self, access: Watcher | None = None) -> None:
        """Send the objects that messages only added, before another message looks at what they wrote."""
        common = self.common
        if common is not None and access is not common.access and self._guarded and common.new:
            common.flush()

    def lend(self, access: Watcher) -> HandlerConnection:
        """The connection that the messages of this unit use in turns."""
        spare, self.spare = self.spare, None
        if spare is None:
            return HandlerConnection(self.engine, self.pooled, access)
        spare.access = access
        return spare

    def close_cursors(self) -> None:
        """Close what a handler left open: a result that somebody keeps, be it the traceback of an error, would hold
        back SQLite's commit, and keep the connection from each transaction after another connection's commit."""
        for cursor in list(self.cursors or ()):
            with suppress(Exception):  # a thread is amid it
                cursor.close()

    def set_own(self) -> None:
        """Begin the part of one message, which can be undone alone whatever became of savepoints inside."""
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
        """Let a handler's plain INSERT wait, so that those of a batch take one round trip. Any other statement, or one
        inside a savepoint of the handler's own, comes after those that wait."""
        wait = self.together and plain and self._dialect.plain(statement)
        if wait:
            self.write(statement, rows)
        if not wait or len(rows) > 1:  # a session that flushes several objects wants to know whether they are refused
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
            self._failed = broken  # the first look knows most
        return broken

    def ended(self, error: BaseException) -> BaseException | None:
        broken = self.broken()
        if isinstance(broken, Apart | StoreConflict | StoreUnavailable | TransactionEnded):
            return broken
        # Only what this transaction met: the handler may speak to other databases too.
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
        """A handler caught a database error: a collision, which runs again, or its own mistake."""
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
        except Exception as error:  # all is undone in any case
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
        """Undo what is not committed and return the connection. Never raises: a broken connection is discarded."""
        self._waiting.clear()
        self.spare = None  # which knows this unit: without, no garbage is left to find
        common, self.common = self.common, None
        if common is not None:
            common.access.close()
        self._tell_all("after_rollback")
        self.flushed.undo()  # nothing, where all is committed
        self._return()

    def tell(self, session: HandlerSession, event: str) -> None:
        """Tell a session's listeners how its transaction ended. It has: an error of theirs changes nothing."""
        try:
            getattr(session.dispatch, event)(session)
        except Exception:
            _log.exception("flow %s: a listener to %s failed, which changes nothing", self.flow, event)

    def _tell_all(self, event: str) -> None:
        sessions, self.sessions = self.sessions, []
        for session in sessions:
            self.tell(session, event)
