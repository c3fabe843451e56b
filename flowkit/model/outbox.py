"""The outbox: messages that handlers and programs send, until the transaction that they leave with."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from flowkit import duration
from flowkit.errors import DefinitionError, FlowKitError, TooLarge, Unrouted
from flowkit.message import CONTENT_TYPE, MAX_BODY, Message, check_name, check_sent, digest
from flowkit.model.channel import Channel, Routed
from flowkit.ports import Clock, Ids
from flowkit.telemetry.port import OFF, Telemetry


class Outgoing(NamedTuple):
    """A message that a handler sends, not addressed to flows yet."""

    message: Message
    delay: float
    digest: str = ""
    """The digest of its body, if its sender chose its id. The store refuses the same id with another digest."""
    request: str = ""
    """The digest of its HTTP request, if there was one: another version may serialize the body differently."""


class Context(NamedTuple):
    """The parts needed to make messages; fixed for a process."""

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
    """Return the message of a routed value, or of bytes that are `encoded` already. Raises TypeError, TooLarge or
    Undecodable if the value cannot be a message."""
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


class Sender(Protocol):
    """The flow whose handler sends."""

    @property
    def name(self) -> str: ...

    @property
    def to(self) -> Collection[Channel[Any]]:
        """The channels to which the flow may send."""


class Outbox:
    """Injected into handlers: sends messages that leave with the handler's transaction, or not at all."""

    def __init__(self, flow: Sender, context: Context, cause: Message, routes: Mapping[str, Sequence[str]]) -> None:
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
    """Return the error for a channel without subscribers."""
    return (
        f"no flow subscribes to channel {channel}; start a worker with a flow that has it as its source, or declare "
        f"it app.channel({channel!r}, …, optional=True) if its messages may go nowhere"
    )
