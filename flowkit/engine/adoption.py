"""Foreign messages: each gets the id that its flow finds in it. A message that cannot be read gets another id.

The id that the sender gave to an unreadable message may belong to a good message. The dead letter of an unreadable
message therefore has the source UNREAD, and the hash of the received bytes as its id. A retry brings the message here
once more, with its original id and source.
"""

import re
from collections.abc import Collection, Mapping, Sequence

from flowkit.engine.dead_letter import describe
from flowkit.engine.envelope import renamed
from flowkit.engine.item import Item
from flowkit.errors import Reused, Undecodable
from flowkit.message import MAX_NAME, NAMELESS, ORIGINAL_ID, ORIGINAL_SOURCE, UNREAD, USER_ID, Message, digest
from flowkit.model.flow import Flow
from flowkit.model.identity import expand
from flowkit.model.outbox import Context
from flowkit.ports import Clock, Delivery, Duplicate, Store, Unit

PARTS = re.compile("[./]")
USER = "user:"
"""Prefix of a source that is the name of a RabbitMQ user."""


NAMES_SECONDS = 60.0
"""Seconds between two queries for the names of the apps."""


class KnownApps:
    """The names of the apps that have flows in a store or publish there. The constructor and `refresh` query the store,
    and block."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self.names = self._read()
        self._since = clock.monotonic()

    def refresh(self, now: float) -> None:
        """Read the names again, if NAMES_SECONDS have passed. `now`: the monotonic time."""
        if now - self._since >= NAMES_SECONDS:
            self.names, self._since = self._read(), now

    def _read(self) -> frozenset[str]:
        return frozenset(map(app_of, (*self._store.subscribers.channels(), *self._store.subscribers.publishers())))


def is_foreign(delivery: Delivery) -> bool:
    """Whether another program sent the message. It arrives from the broker, or it is a retried dead letter."""
    return delivery.foreign or delivery.message.source == UNREAD


def app_of(name: str) -> str:
    """The app in the name of a flow or source: names have the form APP, APP.FLOW or APP/PRINCIPAL."""
    return PARTS.split(name, maxsplit=1)[0]


def received(delivery: Delivery, channel: str, apps: Collection[str] = (), by_user: bool = False) -> Delivery:
    """A foreign message as it arrived, with the channel of its flow, and with a source that no app of the store has.

    A foreign message that names an app of the store as its source must not take the identity of a present or future
    message of that app. `apps`: the apps of the store. `by_user`: the source is the RabbitMQ user who sent the message,
    if the message names the user.
    """
    message = delivery.message
    if message.source == UNREAD:
        headers = message.headers if isinstance(message.headers, Mapping) else {}  # The row may hold anything.
        id, source = headers.get(ORIGINAL_ID, ""), headers.get(ORIGINAL_SOURCE, NAMELESS)
        message = message._replace(id=id, source=source if source != UNREAD else NAMELESS)
    own, source = app_of(delivery.flow), str(message.source)  # It may have any type.
    if source.partition(".")[0] == own:
        message = message._replace(source=NAMELESS)
    elif app_of(source) == own or app_of(source) in apps:  # Several programs may use such names: keep them apart.
        message = message._replace(source=f"{NAMELESS}:{source}"[:MAX_NAME])
    if by_user and (user := _user(message)):
        message = message._replace(source=f"{USER}{user}"[:MAX_NAME])
    message = message._replace(channel=channel)
    return delivery._replace(message=message, foreign=True, digest=digest(message.body))


def adopted(delivery: Delivery, flow: Flow, context: Context) -> Delivery:
    """A received message with the id by which it takes effect once. A message without an id gets a new one.

    Raises Undecodable if the message was refused, lacks the user that the flow asks for, has a body that is too large
    or cannot be expanded, or if `id_from` fails.
    """
    message = delivery.message
    if delivery.refused:
        raise Undecodable(delivery.refused)
    if flow.source_from and not _user(message):
        raise Undecodable(
            f"flow {flow.name} knows who sent a message by its user_id (source_from=), and it has none; the program "
            "that sends it sets that property to the name of its user"
        )
    if len(message.body) > context.max_body:
        raise Undecodable(f"its body of {len(message.body):,} bytes exceeds the limit of {context.max_body:,} bytes")
    if flow.body.raw is not bytes:
        message = expand(message, context.max_body)
    try:
        id = flow.identifier.find(message)
    except Undecodable:
        raise
    except Exception as error:
        # This is no failed attempt to retry: without its id, a second attempt would be another message.
        raise Undecodable(f"its id cannot be found: {describe(error)}; mend id_from=, and retry it") from error
    return delivery._replace(
        message=message._replace(id=id or context.ids()), unidentified=delivery.unidentified or not id
    )


def _user(message: Message) -> str:
    """The RabbitMQ user who sent a message. Empty if the message does not name the user."""
    return message.headers.get(USER_ID, "") if isinstance(message.headers, Mapping) else ""


def unread(delivery: Delivery) -> Delivery:
    """A received message that cannot be read, under the identity of its dead letter. The identity is the same each time
    that the message arrives."""
    message = delivery.message
    return renamed(delivery, UNREAD, repr((message.source, "" if delivery.unidentified else message.id)))


def find_reused(unit: Unit, items: Sequence[Item]) -> int:
    """Find duplicates whose body differs from the body of the first message with their id. Returns their number.

    Notes the error Reused on their items. Blocks for one query if there are duplicates of foreign messages.
    """
    duplicates = [item for item in items if item.delivery.digest and isinstance(item.outcome, Duplicate)]
    known = unit.digests([item.delivery for item in duplicates]) if duplicates else {}
    found = [one for one in duplicates if known.get(one.delivery.identity) not in (None, "", one.delivery.digest)]
    for item in found:
        item.error = Reused(
            "this id came before with another body, which alone counts; if both are meant, let id_from= name what "
            "tells them apart"
        )
    return len(found)
