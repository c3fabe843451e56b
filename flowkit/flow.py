"""Flows: named handlers with one source, their policies, and how a handler is called."""

import inspect
import logging
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, Union, get_args, get_origin, get_type_hints

from pydantic_core import to_json

from flowkit import duration
from flowkit.channel import Body, Channel, Routed, Split
from flowkit.document import check_finite, check_readable
from flowkit.errors import DefinitionError, FlowKitError, TooLarge, Unrouted
from flowkit.foreign import Identifier, IdFrom
from flowkit.message import CONTENT_TYPE, MAX_BODY, Message, check_name, check_sent, digest
from flowkit.ports import Asked, Clock, Delivery, Ids, Objects, UnitOfWork
from flowkit.route import REPLY_SECONDS, Arguments, Header, Route, principal_of
from flowkit.telemetry import OFF, Telemetry

Isolation = Literal["batch", "savepoint", "single"]
SourceFrom = Literal["user_id"]
"""The user of RabbitMQ that sent a message: RabbitMQ checks that property."""
LANES = 2
"""Lanes of a flow that says nothing of its concurrency, on a store with many writers."""
IN_FLIGHT = 100
"""Messages of an `async def` flow that says nothing of its concurrency, at work at once."""
MOST_IN_FLIGHT = 1000
Logger = logging.LoggerAdapter[logging.Logger]


class RetryPolicy:
    """How often a failing message is tried, and how long it waits between: first, first × factor, … up to most.

    `jitter` spreads each wait by that share of it, so that messages that failed together do not return together. The
    default waits for 39 minutes in all, 31 at least: an outage of what a handler calls costs no message.
    """

    def __init__(
        self,
        attempts: int = 16,
        first: duration.Duration = "1s",
        factor: float = 2.0,
        most: duration.Duration = "5m",
        jitter: float = 0.2,
    ) -> None:
        if attempts < 1 or factor < 1 or not 0 <= jitter < 1:
            raise DefinitionError(
                f"RetryPolicy(attempts={attempts}, factor={factor}, jitter={jitter}): attempts and factor are at "
                "least 1, jitter is at least 0 and below 1"
            )
        self.attempts = attempts
        self.first = duration.seconds(first, "RetryPolicy(first=)")
        self.factor = factor
        self.most = duration.seconds(most, "RetryPolicy(most=)")
        self.jitter = jitter

    def delay(self, failures: int, random: float) -> float:
        """Seconds to wait after so many failures; `random` is in [0, 1)."""
        wait = min(self.most, self.first * self.factor ** min(failures - 1, 64))
        return wait * (1 + self.jitter * (2 * random - 1))

    @property
    def longest(self) -> float:
        """The most seconds that all waits together can take."""
        return sum(self.delay(n, 1.0) for n in range(1, self.attempts))

    def __str__(self) -> str:
        if self.attempts == 1:
            return "no retries"
        waits = f"{duration.text(self.first)} × {self.factor:g} up to {duration.text(self.most)}"
        return f"{self.attempts} attempts, {waits}"


class Outgoing(NamedTuple):
    """What a handler sends: not yet addressed to flows."""

    message: Message
    delay: float
    digest: str = ""
    """Of its body, where its sender chose its id: that of another body, which was accepted before, is refused."""
    request: str = ""
    """The same of the HTTP request that it came by, whose body may be packed in another way by another version."""


class Context(NamedTuple):
    """What making messages needs, fixed for a process."""

    clock: Clock
    ids: Ids
    max_delay: float
    max_body: int = MAX_BODY
    telemetry: Telemetry = OFF


def compose(
    context: Context,
    routed: Routed[Any],
    source: str,
    id: str | None = None,
    cause: Message | None = None,
    encoded: bool = False,
) -> Outgoing:
    """The message of a routed value, or of bytes that are `encoded` already. Raises TypeError, TooLarge or Undecodable
    when it cannot be one."""
    channel = routed.channel
    body = routed.value if encoded else channel.body.encode(routed.value)
    if len(body) > context.max_body:
        raise TooLarge(
            f"a message of {len(body):,} bytes to channel {channel.name} exceeds the limit of {context.max_body:,} "
            "bytes; store the content elsewhere and send a reference to it"
        )
    if routed.delay > context.max_delay:
        raise DefinitionError(
            f"a delay of {duration.text(routed.delay)} exceeds App(max_delay={duration.text(context.max_delay)!r}); "
            "raise max_delay, and retention with it: a message must not outlive its inbox row"
        )
    headers = routed.headers
    if channel.shared:
        headers = {CONTENT_TYPE: channel.body.content_type, **headers}
    message = Message(
        id=check_name("a message's id", id) if id is not None else context.ids(),
        source=source,
        channel=channel.name,
        body=body,
        type=type(routed.value).__name__,
        key=None if routed.key is None else check_name("a message's key", routed.key),
        time=context.clock.now(),
        correlation=(cause.correlation or cause.id) if cause else None,
        causation=cause.id if cause else None,
        headers=check_sent(headers) if headers else {},
    )
    return Outgoing(context.telemetry.sent(message), routed.delay, digest(body) if id is not None else "")


class Outbox:
    """Injected into handlers: sends messages that leave with the handler's transaction, or not at all."""

    def __init__(self, flow: "Flow", context: Context, cause: Message, routes: Mapping[str, Sequence[str]]) -> None:
        self._flow = flow
        self._context = context
        self._cause = cause
        self._routes = routes
        self._closed = False
        self.sent: list[Outgoing] = []

    def close(self) -> None:
        """Send nothing more: the handler has returned."""
        self._closed = True

    def send(
        self,
        channel: Channel[Any],
        value: object,
        *,
        key: str | None = None,
        delay: duration.Duration = 0.0,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Send `value` to `channel`, after `delay` if one is given. Returns the message's id. Does not block."""
        return self.route(channel(value, key=key, delay=delay, headers=headers))

    def route(self, routed: Routed[Any]) -> str:
        """Send a routed value. Raises Unrouted when no flow subscribes to its channel, FlowKitError when the handler
        has returned."""
        self._check_open()
        channel = routed.channel
        if channel not in self._flow.to:
            raise DefinitionError(
                f"flow {self._flow.name} sends to channel {channel.name}, which it does not declare; add it to its to="
            )
        if not channel.optional and not self._routes.get(channel.name):
            raise Unrouted(unrouted(channel.name))
        outgoing = compose(self._context, routed, self._flow.name, cause=self._cause)
        self._check_open()  # a thread may take long to make the message
        self.sent.append(outgoing)
        return outgoing.message.id

    def _check_open(self) -> None:
        if self._closed:
            raise FlowKitError(
                f"flow {self._flow.name}: outbox.send() was called after the handler of message {self._cause.id}, or "
                "its function of work.run(), had returned, so nothing would be sent; send inside the function"
            )


def unrouted(channel: str) -> str:
    """What to say when nobody subscribes to a channel."""
    return (
        f"no flow subscribes to channel {channel}; start a worker with a flow that has it as its source, or declare "
        f"it app.channel({channel!r}, …, optional=True) if its messages may go nowhere"
    )


class Giver(Protocol):
    """Gives handlers what they ask for by type: an access to the unit of work."""

    def give(self, wanted: type) -> object: ...

    def finish(self) -> None:
        """The handler has returned: send what it wrote, and put back what it set."""

    def reply(self, asked: Asked, reply: bytes, seconds: float) -> None:
        """Keep the reply to a request, as JSON, for so many seconds."""


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
    """Lanes in each worker; for an `async def` handler the messages at work in its one lane. See `lanes`, `reach`."""
    batch: int = 100
    isolate: Isolation = "batch"
    id_from: IdFrom | None = None
    """Where foreign messages, or requests, have their id."""
    source_from: SourceFrom | None = None
    """The property that names the sender of a foreign message, in place of the message's own word."""
    settings: bool = False
    """Whether the handler changes settings of its transaction or connection by functions, where nobody sees it."""
    priority: int = 0
    """In a reduced service those with less rest first."""

    def __post_init__(self) -> None:
        if isinstance(self.source, Route):
            self.source.takes = lambda: self.body
        if (self.concurrency is not None and self.concurrency < 1) or self.batch < 1:
            raise self.wrong("concurrency and batch are at least 1")
        if self.concurrent and (self.concurrency or 0) > MOST_IN_FLIGHT:
            raise self.wrong(f"concurrency is at most {MOST_IN_FLIGHT} in a worker; start more workers")
        if self.isolate not in get_args(Isolation):
            raise self.wrong(f'isolate={self.isolate!r}; write "batch", "savepoint" or "single"')

    def wrong(self, what: str) -> DefinitionError:
        return DefinitionError(f"flow {self.name}: {what}")

    @cached_property
    def hints(self) -> dict[str, Any]:
        try:
            return get_type_hints(self.handler)
        except NameError as error:
            raise self.wrong(f"its annotation cannot be resolved: {error}; define or import that name") from None

    @cached_property
    def parameters(self) -> list[inspect.Parameter]:
        parameters = list(inspect.signature(self.handler).parameters.values())
        if not parameters:
            raise self.wrong("its handler takes no body; its first parameter receives the message's body")
        return parameters

    @cached_property
    def request(self) -> Arguments | None:
        """What of an HTTP request becomes which argument; None for a flow that has no route."""
        if not isinstance(self.source, Route):
            return None
        hints = get_type_hints(self.handler, include_extras=True) if self.hints else {}
        return Arguments(self.name, self.source, list(inspect.signature(self.handler).parameters.values()), hints)

    @cached_property
    def body(self) -> Body:
        """How received bodies become the handler's first argument, or those that a request brought."""
        if self.request is not None:
            return self.request.message
        first = self.parameters[0]
        if self.hints.get(first.name) is Message:
            raise self.wrong("its first parameter is the body; take the envelope as a second one, `message: Message`")
        annotation = self.hints.get(first.name, self.source.type)
        return Body(annotation, f"flow {self.name}, parameter {first.name}", untyped=self.source.type is Any)

    @cached_property
    def identifier(self) -> Identifier:
        """What finds the ids of foreign messages, or of requests."""
        return Identifier(self.name, self.id_from, self.body)

    def wants(self) -> dict[str, Any]:
        """The parameters besides the body, or besides what a request brings: name -> type."""
        if self.request is not None:
            every = inspect.signature(self.handler).parameters
            return {name: self.hints.get(name) for name in every if name not in self.request.names}
        return {parameter.name: self.hints.get(parameter.name) for parameter in self.parameters[1:]}

    @property
    def replies(self) -> bool:
        """Whether what it returns answers the HTTP request that its message came by, and is not sent on."""
        return isinstance(self.source, Route) and self.source.reply > 0

    @property
    def concurrent(self) -> bool:
        """Whether the handler is `async def`: many run at once, on one thread, outside of any transaction."""
        return inspect.iscoroutinefunction(self.handler) or inspect.isasyncgenfunction(self.handler)

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
                raise self.wrong(
                    f"parameter {name}: {_named(wanted)} cannot be injected; known types are "
                    f"{', '.join(sorted(_named(one) for one in known))}; provide others with app.provide(type, factory)"
                )
        self._check_identity()
        if self.source.type is Any and self.body.raw is bytes and self.request is None:
            raise self.wrong(
                f"its body is bytes, and channel {self.source.name} has no type, so it carries JSON only; write "
                f"app.channel({self.source.name!r}, bytes)"
            )
        self._check_body()
        self._check_return(self.hints.get("return"))

    def _check_body(self) -> None:
        """Find a body that no message of its channel can be."""
        sent, taken = self.source.body, self.body
        if self.request is not None or "text" in (sent.shape, taken.shape) or not (sent.shape and taken.shape):
            return  # text is taken as it came, and read as what it says
        if sent.shape != taken.shape:
            raise self.wrong(
                f"its body is {_named(taken.annotation)}, {taken.shape}, and channel {self.source.name} carries "
                f"{_named(sent.annotation)}, {sent.shape}: no message could be read; write the same type in both places"
            )

    def _check_identity(self) -> None:
        """Find an `id_from`, or a `source_from`, that nothing would look at."""
        self.identifier.check()
        if self.source_from not in (None, *get_args(SourceFrom)):
            raise self.wrong(f'source_from is {self.source_from!r}; write source_from="user_id", or leave it out')
        if self.source_from is not None and (self.request is not None or not self.source.shared):
            raise self.wrong(
                "source_from names the program that sent a message, but its source is no shared channel, at which "
                "other programs are met; declare the channel shared=True, or leave source_from out"
            )
        if self.id_from is None or self.request is not None:
            return
        source = f"channel {self.source.name}"
        if isinstance(self.id_from, Header):
            raise self.wrong(
                f"id_from names the header {self.id_from.name} of a request, but its source is {source}, whose "
                'messages come without one; name a field of the body: id_from="…"'
            )
        if not self.source.shared:
            raise self.wrong(
                f"id_from finds the id of what other programs send, but {source} is for this app alone; declare it "
                "shared=True, or give the id where you publish: app.publish(…, id=…)"
            )

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
        return next(one for one in self.parameters if one.name == name).default is inspect.Parameter.empty

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

    def caller(self, provided: Mapping[type, object], injects: Iterable[type]) -> "Call":
        """How to call the handler: one function, made once for a lane."""
        handler, transactional = self._takes_body(), set(injects)
        getters: list[tuple[str, Getter]] = []
        for name, wanted in self.wants().items():
            if wanted is Message:
                getters.append((name, lambda delivery, outbox, giver: _attempt(delivery)))
            elif wanted is Outbox:
                getters.append((name, lambda delivery, outbox, giver: outbox))
            elif wanted == Logger:
                getters.append((name, lambda delivery, outbox, giver: self._logger(delivery)))
            elif wanted in transactional or wanted is UnitOfWork:
                getters.append((name, _from_giver(wanted)))
            elif wanted in provided:
                getters.append((name, _always(provided[wanted])))

        def call(body: object, delivery: Delivery, outbox: Outbox, giver: Giver) -> None:
            arguments = {name: get(delivery, outbox, giver) for name, get in getters}
            self._finish(handler(body, **arguments), delivery, outbox, giver)

        async def attend(body: object, delivery: Delivery, outbox: Outbox, giver: Giver) -> None:
            arguments = {name: get(delivery, outbox, giver) for name, get in getters}
            result = handler(body, **arguments)
            if isinstance(result, AsyncIterator):
                async for value in result:
                    self._send_one(value, outbox)
            else:
                self._finish(await result, delivery, outbox, giver)

        return attend if self.concurrent else call

    def _takes_body(self) -> Callable[..., Any]:
        """The handler, with the body of a message as its first argument."""
        handler, request = self.handler, self.request
        if request is None or request.alone:
            return handler
        return lambda body, **injected: handler(**request.unpack(body), **injected)

    def _finish(self, result: object, delivery: Delivery, outbox: Outbox, giver: Giver) -> None:
        """What becomes of what the handler returned."""
        if self.replies:
            reply = self._reply(result)
            giver.finish()
            asked = Asked(self.source.name, principal_of(delivery.message.source), delivery.message.id)
            giver.reply(asked, reply, REPLY_SECONDS)
        else:
            self._send(result, outbox)

    def _reply(self, result: object) -> bytes:
        """The value that the handler returned, as JSON."""
        try:
            reply = to_json(result)
            check_finite(reply)
            check_readable(reply)
        except ValueError as error:
            raise TypeError(
                f"flow {self.name}: its reply is no JSON, which has no NaN and no infinity: {error}"
            ) from None
        return reply

    def _send(self, result: object, outbox: Outbox) -> None:
        """Returning is publishing: None, a value, a routed value, or many of them by a generator or Split."""
        if result is None:
            return
        if isinstance(result, Iterator | Split):
            for value in result.values if isinstance(result, Split) else result:
                self._send_one(value, outbox)
        else:
            self._send_one(result, outbox)

    def _send_one(self, value: object, outbox: Outbox) -> None:
        if isinstance(value, Routed):
            outbox.route(value)
        elif len(self.to) == 1:
            outbox.route(self.to[0](value))
        else:
            raise self.wrong(
                f"it returned {type(value).__name__}, and to= names {len(self.to)} channels; "
                "return None, or the channel meant: channel(value)"
            )

    def _logger(self, delivery: Delivery) -> Logger:
        message = delivery.message
        extra = {"flow": self.name, "message_id": message.id, "correlation_id": message.correlation or message.id}
        return logging.LoggerAdapter(logging.getLogger(f"flowkit.flow.{self.name}"), extra)


Getter = Callable[[Delivery, Outbox, Giver], object]
"""Finds one argument of a handler."""


def _attempt(delivery: Delivery) -> Message:
    """The message, which says which attempt this is. The handler may change its headers: they are its own."""
    message = delivery.message
    if not delivery.attempts and not message.headers:
        return message
    return message._replace(attempt=delivery.attempts + 1, headers=dict(message.headers))


def _from_giver(wanted: type) -> Getter:
    return lambda delivery, outbox, giver: giver.give(wanted)


def _always(value: object) -> Getter:
    return lambda delivery, outbox, giver: value


class Call(Protocol):
    """Runs a handler once; what it returns goes into the outbox. The call of an `async def` handler is awaited."""

    def __call__(
        self, body: object, delivery: Delivery, outbox: Outbox, giver: Giver
    ) -> Coroutine[Any, Any, None] | None: ...


def _named(annotation: Any) -> str:
    if annotation == Logger:
        return "flowkit.Logger"  # and not that of logging, whose name is the same
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


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
