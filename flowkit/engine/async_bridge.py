"""The bridge from `async def` handlers to the thread of their lane. The handlers never touch the database; that thread
does, because it may block."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from typing import Any, Protocol, TypeVar, cast

from pydantic_core import from_json, to_json

from flowkit import duration
from flowkit.engine.item import Item
from flowkit.errors import FlowKitError, StoreConflict, Unavailable
from flowkit.fidelity import faithful
from flowkit.message import check_name
from flowkit.ports import Access, Asked, Objects

T = TypeVar("T")
SIGNALS = (
    StopIteration, StopAsyncIteration, GeneratorExit, asyncio.CancelledError, KeyboardInterrupt, SystemExit,
)  # fmt: skip
"""Errors that futures refuse, or that tasks and coroutines do not treat as failures."""
LAZY = (Awaitable, Generator, AsyncGenerator, map)
"""Types of results whose work is not done yet."""


class BlockingCall:
    """A function that a handler asks the lane's thread to run, and the future that gets its result."""

    def __init__(self, function: "Callable[[BlockingCall], Any]") -> None:
        self._function = function
        self.result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.given_up = False
        """Whether the handler that waits for the result was cancelled."""

    def run(self) -> Any:
        return self._function(self)


class BlockingRunner(Protocol):
    """Runs calls on a thread that may block."""

    def take(self, call: BlockingCall) -> None:
        """Take a call, to be run later. For the event loop; does not block."""

    def withdraw(self, call: BlockingCall) -> bool:
        """Forget a call. Returns False if it has begun. For the event loop; does not block."""

    def apply(self, item: Item, function: Callable[[Any, Any], Any], given_up: Callable[[], bool]) -> Any:
        """Run a function as the whole unit of work of an item, unless it is given up before the commit. Blocks."""

    def read(self, key: str) -> Any:
        """Return the value of an object of the app. Blocks."""


class AsyncBridge:
    """Gives one run of a handler its objects and its unit of work. For the event loop, except `write`."""

    def __init__(self, item: Item, runner: BlockingRunner) -> None:
        self.item = item
        self.runner = runner
        self.objects = BufferedObjects(self)
        self._reply: tuple[Asked, bytes, float] | None = None
        self.missed: BaseException | None = None
        """The error that kept the handler from the database, if it is no failure of the handler. The message then runs
        again."""
        self.bound: asyncio.Timeout | None = None
        """The handler's deadline. A cancellation before the deadline comes from the handler itself."""
        self._closed = False

    def close(self) -> None:
        """Take nothing more: the handler has returned, and the lane's thread may write what the handler kept."""
        self._closed = True

    def give(self, wanted: type) -> object:
        return self.objects if wanted is Objects else Work(self)

    def finish(self) -> None:
        """Do nothing: all that the handler keeps and sends waits for its commit."""

    def reply(self, asked: Asked, reply: bytes, seconds: float) -> None:
        self.check("its handler returned a reply")
        self._reply = asked, reply, seconds

    def check_open(self, what: str) -> None:
        """Raise FlowKitError if the handler has returned. `what`: what happened, for the error's text."""
        if self._closed:
            raise FlowKitError(
                f"{what} after the handler of message {self.item.delivery.message.id} had returned, so it would be "
                "lost; await in the handler the tasks that it starts"
            )

    def check(self, what: str) -> None:
        """Raise FlowKitError if it is too late for a commit. `what`: what happened, for the error's text."""
        self.check_open(what)
        if self.item.outcome is not None:
            raise FlowKitError(
                f"{what} after message {self.item.delivery.message.id} had committed, so it would be lost; do it "
                "before work.run()"
            )

    @property
    def holds(self) -> bool:
        """Whether objects or a reply wait here for the commit."""
        return bool(self.objects) or self._reply is not None

    def write(self, access: Access) -> bool:
        """Write the objects and the reply that wait here into a unit of work. Blocks. Returns False, and writes
        nothing, if one of the objects has changed since the handler read it."""
        kept: Any = access.give(Objects)
        if not self.objects.write(kept):
            return False
        if self._reply is not None:
            access.reply(*self._reply)
        return True

    async def ask(self, function: Callable[[BlockingCall], Any]) -> Any:
        """Run a function on the lane's thread, and return or raise its result. If the handler is cancelled, this waits
        until a function that has begun ends."""
        call = BlockingCall(function)
        self.runner.take(call)
        try:
            return await asyncio.shield(call.result)
        except (StoreConflict, Unavailable) as error:
            self.missed = error
            raise
        except asyncio.CancelledError as error:
            call.given_up = True
            if not self.runner.withdraw(call):
                await _over(call.result)
            elif self.bound is not None and self.bound.expired():
                self.missed = error
            raise


class Work:
    """Implements ports.UnitOfWork for one message."""

    def __init__(self, bridge: AsyncBridge) -> None:
        self._bridge = bridge

    async def run(self, function: Callable[[Any, Any], T]) -> T:
        self._check()
        result: T = await self._bridge.ask(lambda call: self._apply(call, function))
        return result

    def _apply(self, call: BlockingCall, function: Callable[[Any, Any], T]) -> T:
        self._check()  # another call may have committed since this one was asked for
        name = getattr(function, "__name__", type(function).__name__)

        def apply(session: Any, outbox: Any) -> T:
            result = function(session, outbox)
            if isinstance(result, LAZY):
                if isinstance(result, Coroutine):
                    result.close()
                raise TypeError(
                    f"work.run(): {name} returned {_a(result)}, so that nothing is done; write a plain def that does "
                    "the database's part before it returns, and await other things before or after work.run()"
                )
            return result

        try:
            return cast(T, self._bridge.runner.apply(self._bridge.item, apply, lambda: call.given_up))
        except SIGNALS as error:
            raise RuntimeError(f"work.run(): {name} raised {type(error).__name__}") from error

    def _check(self) -> None:
        item = self._bridge.item
        if item.outcome is not None:
            raise FlowKitError(
                f"work.run() was called again for message {item.delivery.message.id}, whose unit of work is committed; "
                "do everything in one function"
            )


class BufferedObjects:
    """Implements ports.Objects. Writes wait for the unit of work of their message."""

    def __init__(self, bridge: AsyncBridge) -> None:
        self._bridge = bridge
        self._written: dict[str, tuple[bytes, str | float | None] | None] = {}
        """Key -> value as JSON, and its time to live; None for a deleted object."""
        self._read: dict[str, bytes] = {}
        """Key -> value as JSON when the handler read it first. The handler may change the value that it got."""

    async def get(self, key: str) -> Any:
        self._bridge.check_open("objects.get() was called")
        if key in self._written:
            found = self._written[key]
            return found and from_json(found[0])
        value = await self._bridge.ask(lambda _: self._bridge.runner.read(key))
        self._bridge.check_open("objects.get() found its object")
        self._read.setdefault(key, to_json(value))
        return value

    def put(self, key: str, value: Any, ttl: str | float | None = None) -> None:
        self._bridge.check("objects.put() was called")
        body = faithful(value, f"object {key}")
        if ttl is not None:
            duration.seconds(ttl, "an object's ttl")
        self._written[check_name("an object's key", key)] = (body, ttl)

    def delete(self, key: str) -> None:
        self._bridge.check("objects.delete() was called")
        self._written[key] = None

    def write(self, objects: Objects) -> bool:
        """Write the objects that wait here into those of a unit of work. Blocks. Returns False, and writes nothing, if
        one of them has changed since the handler read it."""
        read = self._read.keys() & self._written.keys()
        if any(to_json(objects.get(key)) != self._read[key] for key in sorted(read)):
            return False
        for key, found in self._written.items():
            if found is None:
                objects.delete(key)
            else:
                body, ttl = found
                objects.put(key, from_json(body), ttl)
        return True

    def __bool__(self) -> bool:
        return bool(self._written)


def _a(value: object) -> str:
    """Return the name of a value's type, with its article."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


async def _over(result: "asyncio.Future[Any]") -> None:
    """Wait until a call that has begun ends, also if this is cancelled: nothing interrupts a COMMIT."""
    while not result.done():
        try:
            await asyncio.wait([result])
        except asyncio.CancelledError:
            continue
    if not result.cancelled():
        result.exception()  # the item has the outcome; the cancellation continues
