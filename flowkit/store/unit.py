"""The unit of work: one transaction for the inbox, the handlers' effects, the outgoing messages and the ledger."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, NoReturn
from weakref import WeakSet

from pydantic_core import to_json
from sqlalchemy.pool import PoolProxiedConnection

from flowkit.errors import Apart, CommitUnknown, StoreConflict, StoreUnavailable, TransactionEnded
from flowkit.ports import Claim, Clock, Copy, Delivery, Fence, Identity, Ids, Letter, Reopening, Tally
from flowkit.store.access import Access, hooked
from flowkit.store.dialect import SWALLOWED, Dialect, classify
from flowkit.store.encoding import MICROSECOND, Row, envelope, names
from flowkit.store.flushed import Flushed
from flowkit.store.handler_session import HandlerConnection, HandlerSession
from flowkit.store.residue import OWN, TOKEN, Residue
from flowkit.store.tables import DEAD, OPEN
from flowkit.store.twin import twin

ENDED = "a handler ended the transaction by the driver and began another"
_log = logging.getLogger("flowkit.store")


class SqlUnit:
    """A unit of work on one connection. FlowKit's own statements go to the driver; each handler gets an Access."""

    def __init__(
        self,
        dialect: Dialect,
        pooled: PoolProxiedConnection,
        flow: str,
        deadline: float,
        lane: str,
        *,
        clock: Clock,
        ids: Ids,
        version: str,
        fence: Fence | None = None,
        begun: bool = False,
    ) -> None:
        """`version` is that of the app, which its dead letters tell. `begun`: the transaction is somebody else's."""
        self.together = False
        self.alone = True
        self.settings = False
        self.waited = 0.0
        self.opening: Callable[[], None] | None = None
        self.flow = flow
        self.engine = dialect.engine
        self.pooled = pooled
        self.private = dialect.private
        self.sql = dialect.statements
        self.refusals = (dialect.error, StoreConflict, StoreUnavailable)
        """The errors by which the database, or FlowKit in its place, refuses a statement of a handler."""
        self.failure: BaseException | None = None
        """The last one of those."""
        self.undone = False
        """Whether a session rolled the transaction back, because a flush failed."""
        self.residue = 0
        """The residue of the handlers' statements, not put back yet."""
        self.sessions: list[HandlerSession] = []
        """Those that want to know how the transaction ends."""
        self.spare: HandlerConnection | None = None
        """The one that the next handler can use."""
        self.flushed = Flushed()
        """Of its handlers that did not fail."""
        self.cursors: WeakSet[Any] | None = WeakSet() if dialect.serial else None
        """The cursors of handlers, where one goes on working as it is asked for rows."""
        self._dialect = dialect
        self._clock = clock
        self._ids = ids
        self._version = version
        driver: Any = pooled.driver_connection
        self._driver, self._cursor = driver, driver.cursor()
        self._lane = lane
        self._deadline = deadline
        self._fence = fence
        self._begun = begun
        self._gone = False
        self._waiting: list[tuple[str, list[Row]]] = []
        self._guarded = False
        self._failed: BaseException | None = None
        self._met: BaseException | None = None
        self._common: Access | None = None

    # ------------------------------------------------------------ inbox

    def look(self, deliveries: Sequence[Delivery]) -> dict[Identity, Claim]:
        found = {
            (flow, source, id): (state, generation, attempts, suspect)
            for flow, source, id, state, generation, attempts, suspect, *_ in self._look(
                one.identity for one in deliveries
            )
        }
        claims = {}
        for one in deliveries:
            state, generation, attempts, suspect = found.get(one.identity, (OPEN, 0, one.attempts, 0))
            if state == OPEN and generation <= one.generation:
                claims[one.identity] = Claim(attempts, bool(suspect))
        return claims

    def claim(self, deliveries: Sequence[Delivery]) -> dict[Identity, Claim]:
        # One row per identity, the highest generation; sorted, so that two claims never deadlock each other.
        wanted: dict[Identity, tuple[int, int, str]] = {}
        for one in deliveries:
            known = wanted.get(one.identity)
            if known is None or known[:2] < (one.generation, one.attempts):
                wanted[one.identity] = (one.generation, one.attempts, one.digest)
        rows = [(*identity, *wanted[identity]) for identity in sorted(wanted)]
        self.begin()
        return {
            (flow, source, id): Claim(attempts, bool(suspect), at)
            for flow, source, id, attempts, suspect, at in self.read(self.sql.claim, (to_json(rows).decode(),))
        }

    def holds(self, claims: Mapping[Identity, Claim]) -> bool:
        written = {(flow, source, id): at for flow, source, id, *_, at in self._look(claims)}
        return all(written.get(identity) == claim.at for identity, claim in claims.items())

    def digests(self, deliveries: Sequence[Delivery]) -> dict[Identity, str]:
        rows = self._look(one.identity for one in deliveries)
        return {(flow, source, id): digest for flow, source, id, *_, digest, _ in rows}

    def _look(self, identities: Iterable[Identity]) -> list[Any]:
        """The rows of the inbox for these."""
        return self.read(self.sql.look, (to_json(sorted({*identities})).decode(),))

    def reopen(self, rows: Sequence[Reopening]) -> None:
        self.write(
            self.sql.set_inbox,
            [(OPEN, one.generation, one.attempts, int(one.suspect), *one.identity) for one in rows],
        )

    def bury(self, letters: Sequence[Letter]) -> None:
        self.write(
            self.sql.set_inbox,
            [(DEAD, one.delivery.generation, one.attempts, 0, *one.delivery.identity) for one in letters],
        )
        self.write(
            self.sql.bury,
            [
                (
                    self._ids(),
                    one.delivery.flow,
                    *envelope(one.delivery.message),
                    one.delivery.generation,
                    one.attempts,
                    one.reason,
                    one.error,
                    one.stack,
                    self._version,
                )
                for one in letters
            ],
        )

    # ------------------------------------------------------------ messages

    def subscribers(self, channels: Collection[str]) -> Mapping[str, Sequence[str]]:
        routes: dict[str, list[str]] = {}
        if channels:
            for channel, flow in self.read(self.sql.subscribers, (names(sorted(channels)),)):
                routes.setdefault(channel, []).append(flow)
        return routes

    def stage(self, copies: Sequence[Copy], lease: float = 0.0) -> None:
        self._waiting += self._dialect.staging(
            [
                (
                    one.row,
                    one.flow,
                    *envelope(one.message),
                    one.generation,
                    one.attempts,
                    int(bool(lease) and not one.delay),
                    int((one.delay or lease) * MICROSECOND),
                    self._lane[:36] if lease and not one.delay else None,
                )
                for one in copies
            ]
        )

    def remove(self, rows: Collection[tuple[str, int]]) -> None:
        if rows:
            copies = to_json(sorted(rows)).decode()
            self.write(self.sql.remove, [(copies, copies)])

    def count(self, tallies: Mapping[str, Tally]) -> None:
        self.write(self.sql.count, [(flow, self._lane, *tallies[flow]) for flow in sorted(tallies)])

    # ------------------------------------------------------------ handlers

    def access(self, careful: bool = False) -> Access:
        return Access(self, careful)

    @property
    def space(self) -> str:
        """The app, whose objects are apart from those of others."""
        return self.flow.split(".", 1)[0]

    @cached_property
    def hooked(self) -> bool:
        return hooked()

    def touch(self, access: Access) -> None:
        """A handler uses the transaction: see to it that there is one and that its end is noticed."""
        if self._failed is not None:
            raise self._failed
        if self._guarded:
            return
        try:
            self.begin()
            access.follow()
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

    def flush_common(self, access: Access | None = None) -> None:
        """Send the objects that messages only added, before another message looks at what they wrote."""
        common = self._common
        if common is not None and access is not common and self._guarded and common.session.new:
            common.session.flush()

    def gather(self, objects: Sequence[object]) -> bool:
        """Flush copies of these with those of the other messages, later. False where they have to be flushed now."""
        twins = [twin(one) for one in objects]
        if None in twins:
            return False
        if self._common is None:
            self._common = Access(self)
            self._common.session.wake()
        self._common.session.gather(twins)
        return True

    def lend(self, access: Access) -> HandlerConnection:
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

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""
        return self._dialect.lost(self._driver)

    @property
    def shut(self) -> bool:
        return self._dialect.shut(self._driver)

    def check(self) -> None:
        if self.undone or not self._guarded:
            return
        try:
            self._cursor.execute(f"ROLLBACK TO SAVEPOINT {TOKEN}")
        except Exception as error:  # all is undone in any case
            if self.token_gone(error):
                raise TransactionEnded(ENDED) from error

    def token_gone(self, error: BaseException) -> bool:
        """Whether a statement failed because a savepoint is gone: somebody ended the transaction by the driver."""
        return self._dialect.token_gone(getattr(error, "orig", None) or error)

    @property
    def rolled_back(self) -> bool:
        """Whether the transaction that was open is not any more, by a local look."""
        return self._guarded and isinstance(self._dialect.broken(self._driver), TransactionEnded)

    def ground(self) -> list[Any]:
        """By what the database finds FlowKit's tables in this transaction: a handler may change it, unseen."""
        return self.read(self.sql.ground) if self.sql.ground else []

    def flush(self) -> None:
        self.flush_common()
        self.send()

    def restore(self) -> None:
        """Put back the settings that a handler changed, before FlowKit itself writes."""
        self.send()
        try:
            self._dialect.restore(self._driver, self._deadline)
        except Exception as error:
            raise self._cause(error) from error
        self.residue &= ~Residue.SETTING

    # ------------------------------------------------------------ the transaction

    def witness(self) -> None:
        if self.sql.witness:
            self.write(self.sql.witness, [()])

    def commit(self) -> None:
        if not self._begun and not self._waiting:
            return
        self.begin()
        if self._guarded:
            broken = self.broken()
            if broken is not None:
                raise broken
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
        self.flushed.clear()
        if self._dialect.doubtful(self._driver):
            self._gone = True
            raise CommitUnknown("the wait for the synchronous standby was cancelled: it may not have the commit")
        self._tell_all("after_commit")

    def end(self) -> None:
        """Undo what is not committed and return the connection. Never raises: a broken connection is discarded."""
        self._waiting.clear()
        self.spare = None  # which knows this unit: without, no garbage is left to find
        if self._common is not None:
            self._common.close()
        self._tell_all("after_rollback")
        self.flushed.undo()  # nothing, where all is committed
        with suppress(Exception):  # on a connection that is closed it cannot be
            self._cursor.close()
        dialect = self._dialect
        kept = not self._gone and not dialect.lost(self._driver) and (not self._begun or self._rolled_back())
        if kept and (not self.residue & (Residue.LASTING | Residue.DRIVER) or self._cleansed()):
            self.pooled.close()
        else:
            dialect.discard(self._driver)
            if self.pooled.is_valid:  # SQLAlchemy may have noticed
                self.pooled.invalidate()

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

    def _cleansed(self) -> bool:
        """Whether nothing is left on the connection of what handlers made there."""
        try:
            return self._dialect.cleanse(self._driver, bool(self.residue & Residue.DRIVER))
        except Exception:
            return False

    def _rolled_back(self) -> bool:
        """Undo what is not committed. False when it cannot be told that it is; the pool would log that as an error."""
        try:
            self._driver.rollback()
        except Exception:
            return False
        return True

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
        """A pooled connection died while it was idle: begin on a new one. Nothing was done on the old one."""
        try:
            self.pooled.invalidate()
            self.pooled = self.engine.raw_connection()
            driver: Any = self.pooled.driver_connection
            self._driver, self._cursor = driver, driver.cursor()
            self._dialect.begin(self._driver, self._deadline)
        except Exception as error:
            raise classify(self._dialect, error, own=True) from error

    def _cause(self, error: BaseException, own: bool = True) -> BaseException:
        """What an error means; a connection on which the store was away is not used again."""
        cause = classify(self._dialect, error, own)
        if isinstance(cause, StoreUnavailable) and self._guarded and self._dialect.barred(error):
            # Its handler may have done that, unseen. If it did not, the record of this failure is refused as well, and
            # then the store is away.
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
        """The rows of a query, which sees what was written before."""
        self.send()
        self._execute(statement, parameters)
        try:
            return list(self._cursor.fetchall())
        except Exception as error:  # SQLite goes on working as it is asked for rows
            raise self._cause(error) from error

    def write(self, statement: str, rows: Iterable[Row]) -> None:
        """Run a statement once for each row of parameters, at the latest with the commit."""
        rows = list(rows)
        if self._waiting and self._waiting[-1][0] == statement:
            self._waiting[-1][1].extend(rows)
        elif rows:
            self._waiting.append((statement, rows))

    def send(self) -> None:
        """Run what waits. Kept until the end, all of it and the commit take one round trip."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            self.begin()
        for statement, rows in waiting:
            try:
                self._dialect.execute(self._cursor, statement, rows)
            except Exception as error:
                # Statements of handlers may wait with FlowKit's; before the commit they were flushed.
                raise self._cause(error, own=not self.together) from error
