"""The objects that a unit of work gives to handlers, and the request that a reply answers."""

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeVar

T = TypeVar("T")


class Asked(NamedTuple):
    """The identity of a request that waits for a reply. Each route and each principal has ids of its own."""

    route: str
    principal: str
    id: str


class Objects(Protocol):
    """Injected into handlers: a durable key-value store of the app, written in the handler's transaction.

    Values are what JSON can say. Each call is a statement in the transaction, and blocks for it. In an `async def`
    handler `get` is awaited, and puts and deletes are written after the handler has returned.
    A `begin_nested()` of the handler's session or connection undoes the puts and deletes inside of it when it is
    rolled back.

    No update of a key is lost: where a handler has read a key and another message changes it before the commit, its
    `put` or `delete` of that key raises StoreConflict, and the message runs again, which is no attempt. Other keys that
    the handler has only read may change meanwhile.
    """

    def get(self, key: str) -> Any:
        """Return the value of a key; None if there is none, or it has expired."""

    def put(self, key: str, value: Any, ttl: str | float | None = None) -> None:
        """Set a key, for a duration such as "1h" if one is given. Raises TypeError for a value that JSON would change,
        such as a tuple, a Decimal or a model."""

    def delete(self, key: str) -> None:
        """Remove a key, if it is there."""


class UnitOfWork(Protocol):
    """Injected into `async def` handlers that need the database: one transaction, run where it may block."""

    def run(self, function: Callable[[Any, Any], T]) -> Awaitable[T]:
        """Run `function(session, outbox)` on a thread, in the unit of work of this message. Returns its result.

        The function gets an ORM session and an Outbox. When it returns, the message is applied: its claim, and the
        function's writes and messages, are committed together. When it raises, all is undone, and it may run again.
        Raises FlowKitError if the unit of work is committed already, and TypeError if the function is an `async def` or
        a generator, or returns an awaitable, a generator or a map, whose work would not have begun.
        """


class Giver(Protocol):
    """Gives one handler its injected objects, and keeps its reply."""

    def give(self, wanted: type) -> object:
        """Return the object for a parameter of this type, one of `Store.injects`. It cannot end the transaction."""

    def finish(self) -> None:
        """Send the handler's writes, and restore the settings of the transaction that it changed. Blocks."""

    def reply(self, asked: Asked, reply: bytes, seconds: float) -> None:
        """Keep the reply to a request, as JSON, for `seconds`. Call it after `finish`. Blocks."""


class Access(Giver, Protocol):
    """The objects that one handler gets of a unit of work: a context around its call.

    The end of the context sends the handler's writes. It raises if the handler caught an error of the database: to
    continue would commit half of its work. The given objects raise FlowKitError when they are used later.
    """

    used: bool
    """Whether the handler touched the transaction."""
    undone: bool
    """Whether all of the handler's writes are undone, while its unit continues. Else the unit has to be undone."""

    def __enter__(self) -> "Access": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
