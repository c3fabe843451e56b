"""What handlers get to write with: a Session and a Connection of the unit's transaction that cannot end it."""

import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NoReturn

from sqlalchemy import Connection, Engine, ExceptionContext, ExecutionContext, event
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import PoolProxiedConnection

from flowkit.errors import SharedState, TransactionEnded

_ENDING = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(commit|end|abort|begin|start\s+transaction|prepare\s+transaction|"
    r"rollback(?!\s+(?:(?:work|transaction)\s+)?to\b))\b",
    re.IGNORECASE | re.DOTALL,
)


def _refuse(what: str) -> NoReturn:
    raise TransactionEnded(
        f"the handler called {what}, but FlowKit ends the transaction, together with the inbox and what is sent; "
        "remove the call; to undo a part, use begin_nested()"
    )


def _at_once(statement: str, rows: Sequence[Any]) -> bool:
    """Postpones nothing."""
    return False


class HandlerConnection(Connection):
    """A connection whose transaction belongs to FlowKit. `touched` is called before each of its statements."""

    touched: Callable[[], None] = staticmethod(lambda: None)
    postpone: Callable[[str, Sequence[Any]], bool] = staticmethod(_at_once)
    """Called with each statement and its rows of parameters: whether it is not to be executed now."""
    open = True
    failure: BaseException | None = None
    """What the driver raised last."""

    @property
    def connection(self) -> PoolProxiedConnection:
        """The driver's connection. What waits goes first, and nothing waits any more: who asks may read by it."""
        self.postpone("", [])
        self.postpone = _at_once
        return super().connection

    def commit(self) -> None:
        _refuse("commit()")

    def rollback(self) -> None:
        _refuse("rollback()")

    def close(self) -> None:
        if self.open:
            _refuse("close()")
        super().close()

    def invalidate(self, exception: BaseException | None = None) -> None:
        if self.open and exception is None:
            _refuse("invalidate()")
        super().invalidate(exception)

    def get_transaction(self) -> NoReturn:
        _refuse("get_transaction()")

    def release(self) -> None:
        """Return the connection to its pool. For the unit of work only."""
        self.open = False
        self.close()


class HandlerSession(Session):
    """A session whose transaction belongs to FlowKit. `touched` is called before each use."""

    touched: Callable[[], None]
    shared = True
    """Whether it holds what other messages of the batch have not sent yet."""

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

    def begin(self, nested: bool = False) -> SessionTransaction:
        if not nested:
            _refuse("begin()")
        return super().begin(nested)

    def release(self) -> None:
        """Forget every object. For the unit of work only."""
        self.shared, self.touched = False, lambda: None
        super().close()


def _noting(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def noted(self: HandlerSession, *arguments: Any, **options: Any) -> Any:
        self.touched()
        return method(self, *arguments, **options)

    return noted


# Objects wait in a session without a statement, so each way into it counts as a use of the transaction.
_USES = (
    "add add_all delete merge get get_one execute scalar scalars query refresh flush connection begin_nested "
    "bulk_save_objects bulk_insert_mappings bulk_update_mappings"
)
for _name in _USES.split():
    setattr(HandlerSession, _name, _noting(getattr(Session, _name)))


def _dropping(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def dropped(self: HandlerSession, *arguments: Any, **options: Any) -> Any:
        if self.shared:
            raise SharedState
        self.touched()
        return method(self, *arguments, **options)

    return dropped


# What earlier messages of the batch left in the session is not sent yet: these would drop it.
for _name in ["expire", "expire_all", "expunge", "expunge_all"]:
    setattr(HandlerSession, _name, _dropping(getattr(Session, _name)))


def watch(engine: Engine) -> None:
    """Refuse statements of handlers that would end their transaction, and remember what they failed with."""

    @event.listens_for(engine, "before_cursor_execute")
    def look(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if isinstance(connection, HandlerConnection):
            connection.touched()
            ending = _ENDING.match(statement)
            if ending:
                _refuse(f"SQL {ending[1].upper()}")

    @event.listens_for(engine, "do_execute")
    def one(cursor: Any, statement: str, row: Any, context: ExecutionContext) -> bool:
        return postponed(context, statement, [row])

    @event.listens_for(engine, "do_executemany")
    def several(cursor: Any, statement: str, rows: Sequence[Any], context: ExecutionContext) -> bool:
        return postponed(context, statement, rows)

    @event.listens_for(engine, "do_execute_no_params")
    def bare(cursor: Any, statement: str, context: ExecutionContext) -> bool:
        return postponed(context, statement, [])

    def postponed(context: ExecutionContext, statement: str, rows: Sequence[Any]) -> bool:
        connection = context.root_connection
        return isinstance(connection, HandlerConnection) and connection.postpone(statement, rows)

    @event.listens_for(engine, "handle_error")
    def note(context: ExceptionContext) -> None:
        if isinstance(context.connection, HandlerConnection):
            context.connection.failure = context.original_exception
