"""The Connection and Session that a handler writes with: they belong to one message, and cannot end the transaction."""

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from threading import Lock
from typing import Any, NoReturn, Protocol, Self, cast

from sqlalchemy import Connection, CursorResult, Engine, ExceptionContext, Executable, ExecutionContext, event
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.sql.expression import ReleaseSavepointClause, RollbackToSavepointClause, SavepointClause

from flowkit.errors import TransactionEnded
from flowkit.store.residue import refusal

HOOKS = (
    "do_orm_execute", "before_flush", "after_flush", "after_flush_postexec", "before_commit", "after_commit",
    "after_rollback", "after_soft_rollback", "after_begin", "before_attach", "after_attach", "transient_to_pending",
    "pending_to_persistent", "after_transaction_create", "after_transaction_end",
)  # fmt: skip
"""SQLAlchemy's events by which an app can see the session of a message and its flushes."""
_SAVEPOINTS = (SavepointClause, RollbackToSavepointClause, ReleaseSavepointClause)


class Watcher(Protocol):
    """Watches what a handler does with its connection and session. Its methods raise errors to stop the handler."""

    turn: Lock
    """Another thread holds this for its statement, so that it runs before the handler's end or not at all."""

    @property
    def elsewhere(self) -> bool:
        """Whether the current thread is one that the handler started."""

    @property
    def connection(self) -> "HandlerConnection":
        """The connection of this message alone, which the handler may keep."""

    def admit(self) -> None:
        """Check that the handler may still act, in the transaction or before it begins."""

    def touch(self) -> None:
        """Note that the handler uses the transaction."""

    def look(self, statement: str, cursor: Any) -> None:
        """Check a statement that the handler executes."""

    def postpone(self, statement: str, rows: Sequence[Any], outside: bool) -> bool:
        """Keep a statement, to send it together with others, and return True; or return False. `outside`: it is outside
        of the handler's savepoints."""

    def execute(self, statement: Executable, params: Any) -> CursorResult[Any]:
        """Execute a statement for a session that is asleep."""

    def flush(self, session: "HandlerSession") -> None:
        """Note that a session is about to flush."""

    def hold(self, connection: "HandlerConnection") -> None:
        """Note that the handler got this connection from a result or a listener, and uses it."""

    def expose(self) -> None:
        """Note that the handler gets the driver's connection, or SQLAlchemy does for a rollback."""

    def note(self, error: BaseException) -> bool:
        """Note an error, and return whether the database refused a statement by it."""

    def undo(self) -> None:
        """Note that a session rolled the transaction back."""

    def close(self) -> None:
        """Refuse every further use."""


def _refuse(what: str) -> NoReturn:
    raise TransactionEnded(
        f"the handler called {what}, but FlowKit ends the transaction, together with the inbox and the outbox, and "
        "keeps the connection for the next message; remove the call; to undo a part, use begin_nested()"
    )


class Driver:
    """The driver's connection as a handler gets it: without a way to return it to the pool, and so to another lane."""

    def __init__(self, pooled: PoolProxiedConnection) -> None:
        self._pooled = pooled

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pooled, name)

    def close(self) -> None:
        _refuse("connection.close()")


class HandlerConnection(Connection):
    """A connection whose transaction belongs to FlowKit. The messages of a batch share the driver's connection."""

    access: "Watcher"
    """The watcher of the current handler, which sees each statement and each error."""
    _beginning = False
    held = False
    """Whether a handler may keep it. If not, the handlers of a batch use it one after another: a new one costs time."""

    def __init__(self, engine: Engine, driver: PoolProxiedConnection, access: "Watcher") -> None:
        self.access = access
        self.failures: list[BaseException | None] = [None]
        """The database's first error, or None, of the transaction and of each open savepoint in it."""
        super().__init__(engine, driver)
        if not self.in_transaction():  # a listener may have begun it by a statement
            self._beginning = True
            self.begin()
            self._beginning = False

    def execution_options(self, **options: Any) -> Self:
        """Set options for good: no other message uses this connection then."""
        self.access.hold(self)
        return cast(Self, super().execution_options(**options))

    @property
    def connection(self) -> PoolProxiedConnection:
        """The driver's connection, whose use FlowKit cannot see. Waiting statements are sent first; later ones do not
        wait."""
        if self._beginning:  # SQLAlchemy asks for it; the transaction has begun, or will
            return super().connection
        self.access.expose()
        return cast(PoolProxiedConnection, Driver(super().connection))

    @property
    def spare(self) -> bool:
        """Whether the next handler can use it: no handler keeps it, and no error or savepoint is left."""
        return not self.held and self.failures == [None]

    def move(self, driver: PoolProxiedConnection) -> None:
        """Continue on another connection of the driver: nothing was done on the old one."""
        self._dbapi_connection = driver

    def commit(self) -> None:
        _refuse("commit()")

    def rollback(self) -> None:
        _refuse("rollback()")

    def close(self) -> None:
        _refuse("close()")

    def detach(self) -> None:
        _refuse("detach()")

    def invalidate(self, exception: BaseException | None = None) -> None:
        if exception is None:
            _refuse("invalidate()")
        super().invalidate(exception)

    def get_transaction(self) -> NoReturn:
        _refuse("get_transaction()")


class HandlerSession(Session):
    """The session of one message, whose transaction belongs to FlowKit.

    Most handlers only call `add`. Until a handler does more, the session is asleep: a list of objects, which the batch
    flushes together.
    """

    def __init__(self, access: "Watcher") -> None:
        self.access = access
        self.added: list[object] = []

    awake = False
    """Whether this is a full SQLAlchemy session."""

    @property
    def marked(self) -> bool:
        """Whether a sleeping session has more than its access and its list: an attribute was set, or a listener."""
        return len(self.__dict__) > 2

    def __getattr__(self, name: str) -> Any:
        """Wake the session: the attribute exists only on a full session."""
        if self.awake or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self.wake()
        return getattr(self, name)

    def wake(self) -> None:
        """Become a full SQLAlchemy session, and keep the attributes that were set."""
        own = dict(self.__dict__)
        super().__init__(self.access.connection, join_transaction_mode="rollback_only", close_resets_only=False)
        self.__dict__.update(own)
        self.awake = True
        added, self.added = self.added, []
        self.gather(added)

    def gather(self, objects: Iterable[object]) -> None:
        """Add objects of handlers that have used the transaction already."""
        for one in objects:
            super().add(one)

    def add(self, instance: object, *, _warn: bool = True) -> None:
        self.access.touch()
        if self.awake or not hasattr(instance, "_sa_instance_state"):
            super().add(instance, _warn=_warn)
        else:
            self.added.append(instance)

    def commit(self) -> None:
        _refuse("commit()")

    def rollback(self) -> None:
        _refuse("rollback()")

    def close(self) -> None:
        _refuse("close()")

    def reset(self) -> None:
        _refuse("reset()")

    def invalidate(self) -> None:
        _refuse("invalidate()")

    def get_transaction(self) -> NoReturn:
        _refuse("get_transaction()")

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        self.access.flush(self)
        super().flush(objects)

    def begin(self, nested: bool = False) -> SessionTransaction:
        if not nested:
            _refuse("begin()")
        return super().begin(nested)

    def release(self) -> None:
        """Forget every object for good. Only its access calls this."""
        if self.awake:
            super().close()


_ANY = HandlerSession.__new__(HandlerSession)
"""Any session: listeners to all sessions listen to this one too."""


def hooked() -> bool:
    """Whether the app listens to sessions. If so, the session of each message is flushed separately."""
    return any(getattr(_ANY.dispatch, name) for name in HOOKS)


def _noting(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def noted(self: HandlerConnection | HandlerSession, *arguments: Any, **options: Any) -> Any:
        self.access.touch()
        if isinstance(self, HandlerSession):
            if not self.awake:
                self.wake()
        elif not self.held:
            self.access.hold(self)
        return method(self, *arguments, **options)

    return noted


for _name in ["execute", "scalar", "scalars", "exec_driver_sql", "begin_nested"]:
    setattr(HandlerConnection, _name, _noting(getattr(Connection, _name)))
# Objects wait in a session without a statement. So each method that takes objects counts as a use of the transaction.
_USES = (
    "add_all delete delete_all merge merge_all get get_one query refresh flush connection begin_nested expire "
    "expire_all expunge expunge_all bulk_save_objects bulk_insert_mappings bulk_update_mappings"
)
for _name in _USES.split():
    setattr(HandlerSession, _name, _noting(getattr(HandlerSession, _name)))


def _executing(name: str) -> Callable[..., Any]:
    """Return an executing method of the session. While the session is unused, statements without ORM parts go straight
    to the connection, where SQLAlchemy's session would send them too, by the same test."""
    by_session = getattr(Session, name)

    @wraps(by_session)
    def executed(self: HandlerSession, statement: Any, params: Any = None, **options: Any) -> Any:
        if self.awake or self.added or options or self.marked or getattr(statement, "_propagate_attrs", True):
            self.access.touch()
            return by_session(self, statement, params, **options)
        result = self.access.execute(statement, params)
        return result if name == "execute" else getattr(result, name)()

    return executed


for _name in ["execute", "scalar", "scalars"]:
    setattr(HandlerSession, _name, _executing(_name))


def _is_savepoint(context: ExecutionContext) -> bool:
    """Whether SQLAlchemy itself executes this for a savepoint, which it closes with the message."""
    return isinstance(getattr(context.compiled, "statement", None), _SAVEPOINTS)


def watch(engine: Engine) -> None:
    """Report to each access its handler's statements and savepoints, and the errors of the database."""
    _watch_statements(engine)
    _watch_ends(engine)


def _watch_statements(engine: Engine) -> None:
    """Report to each access its handler's statements. SQLAlchemy does not execute a statement that waits."""

    @event.listens_for(engine, "before_cursor_execute")
    def look(
        connection: Connection, cursor: Any, statement: str, row: Any, context: ExecutionContext, *rest: Any
    ) -> None:
        if isinstance(connection, HandlerConnection):
            refused = refusal(statement)
            if refused:
                _refuse(refused)
            connection.access.look("" if _is_savepoint(context) else statement, cursor)

    @event.listens_for(engine, "do_execute")
    def one(cursor: Any, statement: str, row: Any, context: ExecutionContext) -> bool:
        return taken(context, statement, [row], lambda: cursor.execute(statement, row))

    @event.listens_for(engine, "do_executemany")
    def several(cursor: Any, statement: str, rows: Sequence[Any], context: ExecutionContext) -> bool:
        return taken(context, statement, rows, lambda: cursor.executemany(statement, rows))

    @event.listens_for(engine, "do_execute_no_params")
    def bare(cursor: Any, statement: str, context: ExecutionContext) -> bool:
        return taken(context, statement, [], lambda: cursor.execute(statement))

    def taken(context: ExecutionContext, statement: str, rows: Sequence[Any], execute: Callable[[], object]) -> bool:
        """Whether SQLAlchemy must not execute a statement: it waits, or ran here for another thread of a handler."""
        connection = context.root_connection
        if not isinstance(connection, HandlerConnection):
            return False
        access, outside = connection.access, len(connection.failures) == 1
        if not access.elsewhere:
            return access.postpone(statement, rows, outside)
        with access.turn:
            access.admit()
            if not access.postpone(statement, rows, outside):
                execute()
        return True


def _watch_ends(engine: Engine) -> None:
    """Report to each access the errors of the database, and follow the ends of the transaction and its savepoints."""

    @event.listens_for(engine, "handle_error")
    def note(context: ExceptionContext) -> None:
        connection = context.connection
        if isinstance(connection, HandlerConnection) and connection.access.note(context.original_exception):
            connection.failures[-1] = connection.failures[-1] or context.original_exception

    @event.listens_for(engine, "rollback")
    def undo(connection: Connection) -> None:
        if isinstance(connection, HandlerConnection):
            connection.access.undo()

    @event.listens_for(engine, "commit")
    def keep(connection: Connection) -> None:
        if isinstance(connection, HandlerConnection):
            _refuse("commit() of a session of its own on this connection")

    @event.listens_for(engine, "savepoint")
    def set_savepoint(connection: Connection, name: str) -> None:
        if isinstance(connection, HandlerConnection):
            connection.failures.append(None)

    @event.listens_for(engine, "rollback_savepoint")
    def undo_savepoint(connection: Connection, name: str, context: None) -> None:
        if isinstance(connection, HandlerConnection):
            connection.failures.pop()

    @event.listens_for(engine, "release_savepoint")
    def keep_savepoint(connection: Connection, name: str, context: None) -> None:
        if isinstance(connection, HandlerConnection):
            failure = connection.failures.pop()
            connection.failures[-1] = connection.failures[-1] or failure
