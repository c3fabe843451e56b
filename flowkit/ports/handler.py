"""What handlers get of a unit of work, and the request that a reply of theirs answers."""

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeVar

T = TypeVar("T")


class Asked(NamedTuple):
    """Names a request that waits for a reply: each route and each principal has ids of its own."""

    route: str
    principal: str
    id: str


class Objects(Protocol):
    """Injected into handlers: a durable key-value store of the app, written in the handler's transaction.

    Values are what JSON can say. Each call is a statement in the transaction, and blocks for it. In an `async def`
    handler `get` is awaited, and what is put or deleted waits for the handler's end.
    A `begin_nested()` of the handler's session or connection undoes the puts and deletes inside of it when it is
    rolled back.

    No update of a key is lost: where a handler has read a key and another message changes it before the commit, its
    `put` or `delete` of that key raises StoreConflict, and the message runs again, which is no attempt. Other keys that
    the handler has only read may change meanwhile.
    """

    def get(self, key: str) -> Any:
        """The value of a key; None where there is none, or its time is over."""

    def put(self, key: str, value: Any, ttl: str | float | None = None) -> None:
        """Set a key, for a duration such as "1h" if one is given. Raises TypeError for what would not
        come out of JSON as it went in, such as a tuple, a Decimal or a model."""

    def delete(self, key: str) -> None:
        """Remove a key, if it is there."""


class UnitOfWork(Protocol):
    """Injected into `async def` handlers that need the database: one transaction, run where it may block."""

    def run(self, function: Callable[[Any, Any], T]) -> Awaitable[T]:
        """Await `function(session, outbox)`, run on a thread in the unit of work of this message, and its result.

        When it returns, the message is applied: its claim, what the function wrote and what it sent are committed
        together. When it raises, all is undone, and it may be run again. What the function gets is an ORM session and
        an Outbox. Raises FlowKitError when the unit of work is committed already, and TypeError when the function is an
        `async def` or a generator, or returns what nobody has run yet.
        """


class Giver(Protocol):
    """Gives one handler what it asks for by type, and takes its reply."""

    def give(self, wanted: type) -> object:
        """The object for a parameter of this type, one of `Store.injects`. It cannot end the transaction."""

    def finish(self) -> None:
        """Send what the handler wrote, and put back the settings of the transaction that it changed."""

    def reply(self, asked: Asked, reply: bytes, seconds: float) -> None:
        """Keep the reply to a request, as JSON, for so many seconds. Call it once the handler is finished."""


class Access(Giver, Protocol):
    """The objects that one handler gets of a unit of work: a context around its call.

    At its end what the handler wrote is sent. It raises then if the handler caught an error of the database: going on
    would commit half of its work. Whatever it gave raises FlowKitError when it is used later.
    """

    used: bool
    """Whether the handler touched the transaction."""
    undone: bool
    """Whether all that it wrote is undone at its end, though the unit goes on. Else the unit has to be undone."""

    def __enter__(self) -> "Access": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
