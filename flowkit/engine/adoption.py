"""Adoption: a message of another program gets the id that its flow finds in it, or is unread.

The id that the sender gave to an unread message may be that of a good message, so it does not count. The dead letter of
an unread message has a source of its own, and the hash of the delivery as its id. A retry adopts the message again.
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
"""The prefix of a source that is the name of a user of the broker."""


NAMES_SECONDS = 60.0
"""Seconds after which the apps of the store are read again."""


class KnownApps:
    """The apps that have flows in a store, and those that publish there. To read them blocks."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self.names = self._read()
        self._since = clock.monotonic()

    def refresh(self, now: float) -> None:
        """Read the apps again, if that is due. `now`: by the monotonic clock."""
        if now - self._since >= NAMES_SECONDS:
            self.names, self._since = self._read(), now

    def _read(self) -> frozenset[str]:
        return frozenset(map(app_of, (*self._store.subscribers.channels(), *self._store.subscribers.publishers())))


def is_foreign(delivery: Delivery) -> bool:
    """Return whether another program sent a message: it comes from the broker, or is a dead letter that is retried."""
    return delivery.foreign or delivery.message.source == UNREAD


def app_of(name: str) -> str:
    """Return the app of a flow or of a source, whose names are APP, APP.FLOW or APP/PRINCIPAL."""
    return PARTS.split(name, maxsplit=1)[0]


def received(delivery: Delivery, channel: str, apps: Collection[str] = (), by_user: bool = False) -> Delivery:
    """Return the delivery of another program's message, at the channel of its flow.

    A source that claims to be this app, or one of the store's `apps`, is replaced: the message must not take an
    identity that a message of theirs has or will have. `by_user`: the user of the broker that sent the message becomes
    its source, if the message names one.
    """
    message = delivery.message
    if message.source == UNREAD:
        headers = message.headers if isinstance(message.headers, Mapping) else {}  # others may have written the row
        id, source = headers.get(ORIGINAL_ID, ""), headers.get(ORIGINAL_SOURCE, NAMELESS)
        message = message._replace(id=id, source=source if source != UNREAD else NAMELESS)
    own, source = app_of(delivery.flow), str(message.source)  # the envelope is not checked yet
    if source.partition(".")[0] == own:
        message = message._replace(source=NAMELESS)
    elif app_of(source) == own or app_of(source) in apps:  # programs with such names stay apart from each other
        message = message._replace(source=f"{NAMELESS}:{source}"[:MAX_NAME])
    if by_user and (user := _user(message)):
        message = message._replace(source=f"{USER}{user}"[:MAX_NAME])
    message = message._replace(channel=channel)
    return delivery._replace(message=message, foreign=True, digest=digest(message.body))


def adopted(delivery: Delivery, flow: Flow, context: Context) -> Delivery:
    """Return a received message under the id by which it takes effect once: the id that the flow finds, or a new one.

    Raises Undecodable if the transport refused the message, its body cannot be expanded, or `id_from` fails.
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
        # There is no retry: without its id, the second attempt would be another message.
        raise Undecodable(f"its id cannot be found: {describe(error)}; mend id_from=, and retry it") from error
    return delivery._replace(
        message=message._replace(id=id or context.ids()), unidentified=delivery.unidentified or not id
    )


def _user(message: Message) -> str:
    """Return the user of the broker that sent a message; empty if the message does not name one."""
    return message.headers.get(USER_ID, "") if isinstance(message.headers, Mapping) else ""


def unread(delivery: Delivery) -> Delivery:
    """Return a message that cannot be read, under the id of its dead letter, which is the same at each arrival."""
    message = delivery.message
    return renamed(delivery, UNREAD, repr((message.source, "" if delivery.unidentified else message.id)))


def find_reused(unit: Unit, items: Sequence[Item]) -> int:
    """Find the duplicates whose body differs from that of the message which has their id, and set their error to
    Reused. Returns their number.

    Blocks for one statement, if there are duplicates of messages that other programs sent.
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
