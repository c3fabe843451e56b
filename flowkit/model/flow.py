"""Flows: named handlers with one source, and their policies."""

import inspect
import types
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Union, get_args, get_origin

from flowkit.errors import DefinitionError
from flowkit.message import Message
from flowkit.model.body import Body, named
from flowkit.model.channel import Binding, Channel, Routed, Split
from flowkit.model.handler import Call, Caller, Logger
from flowkit.model.identity import Identifier, IdFrom
from flowkit.model.outbox import Outbox
from flowkit.model.retry import RetryPolicy
from flowkit.model.signature import Signature
from flowkit.ports import Objects, UnitOfWork

Isolation = Literal["batch", "savepoint", "single"]
SourceFrom = Literal["user_id"]
"""The user of RabbitMQ that sent a message: RabbitMQ checks that property."""
LANES = 2
"""Lanes of a flow without `concurrency=`, on a store with many writers."""
IN_FLIGHT = 100
"""Messages in flight at once of an `async def` flow without `concurrency=`."""
MOST_IN_FLIGHT = 1000


@dataclass(eq=False)
class Flow:
    """A named handler with one source, its policies, and the channels it sends to."""

    name: str
    handler: Callable[..., Any]
    source: Channel[Any]
    to: tuple[Channel[Any], ...] = ()
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    deadline: float = 60.0
    concurrency: int | None = None
    """Lanes in each worker; for an `async def` handler the messages in flight in its one lane. See `lanes`, `reach`."""
    batch: int = 100
    isolate: Isolation = "batch"
    id_from: IdFrom | None = None
    """The place of the id in foreign messages or requests."""
    source_from: SourceFrom | None = None
    """The property that names the sender of a foreign message, in place of the message's own word."""
    settings: bool = False
    """Whether the handler changes settings of its transaction or connection by SQL functions, unseen by FlowKit."""
    priority: int = 0
    """In reduced service, flows with lower priority rest first."""
    signature: Signature = field(init=False, repr=False)
    binding: Binding = field(init=False, repr=False)
    """How the messages of its source reach its handler."""

    def __post_init__(self) -> None:
        self.signature = Signature(self.name, self.handler)
        self.binding = self.source.bind(self.signature)
        self._caller = Caller(self.signature, self.binding, self.to)
        if (self.concurrency is not None and self.concurrency < 1) or self.batch < 1:
            raise self.wrong("concurrency and batch are at least 1")
        if self.concurrent and (self.concurrency or 0) > MOST_IN_FLIGHT:
            raise self.wrong(f"concurrency is at most {MOST_IN_FLIGHT} in a worker; start more workers")
        if self.isolate not in get_args(Isolation):
            raise self.wrong(f'isolate={self.isolate!r}; write "batch", "savepoint" or "single"')

    def wrong(self, what: str) -> DefinitionError:
        """The error for a mistake in its definition."""
        return self.signature.wrong(what)

    @cached_property
    def body(self) -> Body:
        """How received bodies become the handler's first argument, or those that a request brought."""
        return self.binding.body

    @cached_property
    def identifier(self) -> Identifier:
        """The object that finds the ids of foreign messages or requests."""
        return Identifier(self.name, self.id_from, self.body)

    def wants(self) -> dict[str, Any]:
        """The parameters that are injected: name -> type."""
        return self._caller.wants()

    @property
    def replies(self) -> bool:
        """Whether its result is the reply to the sender of its message, and is not published."""
        return self.binding.replies

    @property
    def concurrent(self) -> bool:
        """Whether the handler is `async def`: many run at once, on one thread, outside of any transaction."""
        return self._caller.concurrent

    def check(self, injectable: Iterable[type], provided: Iterable[type] = ()) -> None:
        """Find what is wrong in the definition. Raises DefinitionError with what to write instead.

        `injectable` are the types that the store gives, `provided` those of the app.
        """
        known = (*injectable, *provided, UnitOfWork, Message, Outbox, Logger)
        for name, wanted in self.wants().items():
            self._check_side(name, wanted, injectable)
            if wanted not in known and any(one in known for one in get_args(wanted)):
                raise self.wrong(
                    f"parameter {name}: {_named(wanted)} is never injected; write the type alone, without None"
                )
            if wanted not in known and self._required(name):
                what = f"{name}: {_named(wanted)} cannot be injected" if wanted else f"{name} has no type: annotate it"
                raise self.wrong(
                    f"parameter {what}; known types are "
                    f"{', '.join(sorted(_named(one) for one in known))}; provide others with app.provide(type, factory)"
                )
        self._check_identity()
        self.binding.check_body()
        self._check_return(self.signature.hints.get("return"))

    def _check_identity(self) -> None:
        """Find an `id_from`, or a `source_from`, that nothing would look at."""
        self.identifier.check()
        if self.source_from not in (None, *get_args(SourceFrom)):
            raise self.wrong(f'source_from is {self.source_from!r}; write source_from="user_id", or leave it out')
        if self.source_from is not None and not self.source.shared:
            raise self.wrong(
                "source_from names the program that sent a message, but its source is no shared channel, at which "
                "other programs are met; declare the channel shared=True, or leave source_from out"
            )
        if self.id_from is not None:
            self.binding.check_identity(self.id_from)

    def _check_side(self, name: str, wanted: Any, injectable: Iterable[type]) -> None:
        """Find what only the other kind of handler can take."""
        asks = f"parameter {name}: {_named(wanted)}"
        if not self.concurrent and wanted is UnitOfWork:
            raise self.wrong(f"{asks} is for async def handlers; a plain def takes the session itself, `db: Session`")
        if self.concurrent and wanted in injectable and wanted is not Objects:
            raise self.wrong(
                f"{asks} cannot be given to an async def handler: many run at once, and one transaction cannot serve "
                "them; take `work: UnitOfWork` and write `await work.run(function)`, where function(session, outbox) "
                "does the database's part, or make the handler a plain def"
            )
        if wanted is Outbox and UnitOfWork in self.wants().values():
            raise self.wrong(
                f"{asks} would send beside its unit of work; take the outbox that work.run gives to "
                "function(session, outbox)"
            )

    def _required(self, name: str) -> bool:
        return next(one for one in self.signature.parameters if one.name == name).default is inspect.Parameter.empty

    def _check_return(self, annotation: Any) -> None:
        if self.replies and self.to:
            raise self.wrong("what it returns answers its request, so it has no to=; send with an Outbox")
        for kind in _alternatives(annotation):
            if UnitOfWork in self.wants().values() and kind not in (None, type(None), Any):
                raise self.wrong(
                    f"it returns {_named(kind)} besides its unit of work; send it inside: outbox.send(…) in the "
                    "function(session, outbox) that work.run gets"
                )
            if self.replies or kind in (None, type(None), Any) or get_origin(kind) is Routed or kind is Routed:
                continue
            if not self.to:
                raise self.wrong(f"it returns {_named(kind)} but has no to=; name the channel, or return None")
            adapter = Body(kind, f"flow {self.name}, its return value")
            if len(self.to) > 1:
                raise self.wrong(f"it has {len(self.to)} channels in to=; return the one meant: channel(value)")
            expected, sent = self.to[0].type, self.to[0].body
            shapes = {adapter.shape, sent.shape}
            if ("" not in shapes and len(shapes) > 1) or {adapter.raw, sent.raw} == {str, bytes}:
                raise self.wrong(
                    f"it returns {_named(kind)}, {adapter.shape}, but channel {self.to[0].name} carries "
                    f"{_named(expected)}, {sent.shape}; return what it carries, or declare the channel otherwise"
                )
            if isinstance(kind, type) and isinstance(expected, type) and expected is not Any and adapter.raw is None:
                plain = get_origin(kind) is None and get_origin(expected) is None
                if plain and not issubclass(kind, expected):
                    raise self.wrong(
                        f"it returns {_named(kind)}, but channel {self.to[0].name} carries {_named(expected)}"
                    )

    def lanes(self, serial: bool) -> int:
        """How many lanes of a worker run it: where one waits for the database another can work, unless the store
        has one writer at a time."""
        return 1 if self.concurrent else self.concurrency or (1 if serial else LANES)

    @property
    def reach(self) -> int:
        """The most messages that a lane takes at once."""
        return (self.concurrency or IN_FLIGHT) if self.concurrent else self.batch

    def takes(self, kinds: Iterable[type]) -> bool:
        """Whether the handler asks for one of these types, or its reply is kept beside what it writes."""
        return self.replies or not set(kinds).isdisjoint(one for one in self.wants().values() if isinstance(one, type))

    def caller(self, provided: Mapping[type, object], injects: Iterable[type]) -> Call:
        """How to call the handler: one function, made once for a lane."""
        return self._caller.call(provided, injects)


def _named(annotation: Any) -> str:
    if annotation == Logger:
        return "flowkit.Logger"  # and not that of logging, whose name is the same
    return named(annotation)


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The kinds of value that a return annotation allows: unions opened, generators and Split reduced to an item."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for one in get_args(annotation):
            yield from _alternatives(one)
    elif origin is Split or (isinstance(origin, type) and issubclass(origin, Iterator | AsyncIterator)):
        yield from _alternatives(get_args(annotation)[0])
    else:
        yield annotation
