"""Channels: names that messages are published to, the type of what they carry, and how a handler receives it."""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property
from typing import Any, Generic, TypeVar

from flowkit import duration
from flowkit.errors import DefinitionError, Undecodable
from flowkit.message import Message, check_name
from flowkit.model.body import Body, named
from flowkit.model.identity import EnvelopeField, IdFrom
from flowkit.model.signature import Signature
from flowkit.ports import Delivery, Giver

T = TypeVar("T")


class Channel(Generic[T]):
    """A typed name that messages are published to; every subscribed flow gets its own copy.

    Calling it routes a value: `return accepted(value, key="k", delay="10m")`.
    """

    def __init__(self, name: str, type: Any = Any, optional: bool = False, shared: bool = False) -> None:
        try:
            self.name = check_name("a channel's name", name)
        except Undecodable as error:
            raise DefinitionError(str(error)) from None
        self.type = type
        self.optional = optional
        self.shared = shared
        self._body = Body(type, f"channel {name}")
        self._body.check()

    @property
    def body(self) -> Body:
        """How its values become bytes and come back."""
        return self._body

    def bind(self, handler: Signature) -> "Binding":
        """Bind a handler, which receives what is published to this channel. Finds no mistake in it yet."""
        return Binding(self, handler)

    @property
    def declared(self) -> str:
        """How it is declared, for people: its type and its options."""
        options = {", optional=True": self.optional, ", shared=True": self.shared}
        kind = self.type.__qualname__ if isinstance(self.type, type) else str(self.type)
        return kind + "".join(option for option, taken in options.items() if taken)

    def __call__(
        self,
        value: T,
        *,
        key: str | None = None,
        delay: duration.Duration = 0.0,
        headers: Mapping[str, str] | None = None,
    ) -> "Routed[T]":
        return Routed(self, value, key, duration.seconds(delay, "delay"), headers or {})

    def __repr__(self) -> str:
        return f"Channel({self.name!r})"


class Routed(Generic[T]):
    """A value on its way to a channel, with what the envelope needs."""

    __slots__ = ("channel", "delay", "headers", "key", "value")

    def __init__(
        self, channel: Channel[T], value: T, key: str | None, delay: float, headers: Mapping[str, str]
    ) -> None:
        self.channel = channel
        self.value = value
        self.key = key
        self.delay = delay
        self.headers = headers


class Split(Generic[T]):
    """Returned by a handler: each of these values is a message of its own."""

    def __init__(self, values: Iterable[T]) -> None:
        self.values = values


class Binding:
    """The way from the messages of a channel into one handler: which arguments the body of a message becomes, and what
    becomes of the result.

    A message's body is the first argument, and what the handler returns is sent on. A channel that is reached in
    another way, as by HTTP, overrides this.
    """

    replies = False
    """Whether the result answers the one who sent the message, and is not sent on."""

    def __init__(self, channel: Channel[Any], handler: Signature) -> None:
        self._channel = channel
        self._handler = handler

    @property
    def names(self) -> Collection[str]:
        """The parameters that are filled from the body."""
        return (self._handler.first.name,)

    @cached_property
    def body(self) -> Body:
        """How bodies are read."""
        handler, first, kind = self._handler, self._handler.first, self._channel.type
        if handler.hints.get(first.name) is Message:
            raise handler.wrong(
                "its first parameter is the body; take the envelope as a second one, `message: Message`"
            )
        annotation = handler.hints.get(first.name, kind)
        return Body(annotation, f"flow {handler.flow}, parameter {first.name}", untyped=kind is Any)

    def call(self) -> Callable[..., Any]:
        """The handler, as a function of the value of a body and of what is injected, by name."""
        return self._handler.function

    def finish(self, result: object, delivery: Delivery, giver: Giver, send: Callable[[object], None]) -> None:
        """Do with a result what it is for. `send` sends it on."""
        send(result)

    def check_body(self) -> None:
        """Find a body that no message of the channel can be. Raises DefinitionError with what to write instead."""
        channel, sent, taken = self._channel, self._channel.body, self.body
        if channel.type is Any and taken.raw is bytes:
            raise self._handler.wrong(
                f"its body is bytes, and channel {channel.name} has no type, so it carries JSON only; write "
                f"app.channel({channel.name!r}, bytes)"
            )
        if "text" in (sent.shape, taken.shape) or not (sent.shape and taken.shape):
            return  # text is taken as it came, and read as what it says
        if sent.shape != taken.shape:
            raise self._handler.wrong(
                f"its body is {named(taken.annotation)}, {taken.shape}, and channel {channel.name} carries "
                f"{named(sent.annotation)}, {sent.shape}: no message could be read; write the same type in both places"
            )

    def check_identity(self, id_from: IdFrom) -> None:
        """Find an `id_from` that nothing would look at. Raises DefinitionError with what to write instead."""
        source = f"channel {self._channel.name}"
        if isinstance(id_from, EnvelopeField):
            raise self._handler.wrong(
                f"id_from names {id_from.label}, but its source is {source}, whose messages come without one; name a "
                'field of the body: id_from="…"'
            )
        if not self._channel.shared:
            raise self._handler.wrong(
                f"id_from finds the id of what other programs send, but {source} is for this app alone; declare it "
                "shared=True, or give the id where you publish: app.publish(…, id=…)"
            )
