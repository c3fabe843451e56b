"""Messages of other programs: adopted under the id that the flow finds, or unread, under an id of their own.

A message that cannot be read has no id of the flow's: the one that its sender gave may be that of a good message. Its
dead letter has a source of its own, and the hash of what came as its id; a retry brings it here once more.
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
"""Before the name of a user of the broker that is the source of a message."""


NAMES_SECONDS = 60.0
"""Seconds between two looks which apps the store has."""


class KnownApps:
    """The apps that have flows in a store, and those that publish there. Blocks to read them."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self.names = self._read()
        self._since = clock.monotonic()

    def refresh(self, now: float) -> None:
        """Read them again, if that is due by the monotonic clock."""
        if now - self._since >= NAMES_SECONDS:
            self.names, self._since = self._read(), now

    def _read(self) -> frozenset[str]:
        return frozenset(map(app_of, (*self._store.subscribers.channels(), *self._store.subscribers.publishers())))


def is_foreign(delivery: Delivery) -> bool:
    """Whether another program sent it: it comes from there, or as a dead letter that is retried."""
    return delivery.foreign or delivery.message.source == UNREAD


def app_of(name: str) -> str:
    """The app that a flow, or the source of a message, is of: they are APP, APP.FLOW or APP/PRINCIPAL."""
    return PARTS.split(name, maxsplit=1)[0]


def received(delivery: Delivery, channel: str, apps: Collection[str] = (), by_user: bool = False) -> Delivery:
    """A message of another program as it came, at the channel of its flow. One that claims to be of this app, or of
    another one of the store, must not take an identity that a message of theirs has, or will have. `by_user`: its
    source is the user of the broker that sent it, if it says which."""
    message = delivery.message
    if message.source == UNREAD:
        headers = message.headers if isinstance(message.headers, Mapping) else {}  # whoever wrote the row
        id, source = headers.get(ORIGINAL_ID, ""), headers.get(ORIGINAL_SOURCE, NAMELESS)
        message = message._replace(id=id, source=source if source != UNREAD else NAMELESS)
    own, source = app_of(delivery.flow), str(message.source)  # whatever type it has
    if source.partition(".")[0] == own:
        message = message._replace(source=NAMELESS)
    elif app_of(source) == own or app_of(source) in apps:  # it may be true of several programs: they stay apart
        message = message._replace(source=f"{NAMELESS}:{source}"[:MAX_NAME])
    if by_user and (user := _user(message)):
        message = message._replace(source=f"{USER}{user}"[:MAX_NAME])
    message = message._replace(channel=channel)
    return delivery._replace(message=message, foreign=True, digest=digest(message.body))


def adopted(delivery: Delivery, flow: Flow, context: Context) -> Delivery:
    """A received message under the id by which it takes effect once; a fresh one if it has none.

    Raises Undecodable when it was refused, its body cannot be expanded, or `id_from` finds none.
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
        # No attempt either: without its id a second one would be another message.
        raise Undecodable(f"its id cannot be found: {describe(error)}; mend id_from=, and retry it") from error
    return delivery._replace(
        message=message._replace(id=id or context.ids()), unidentified=delivery.unidentified or not id
    )


def _user(message: Message) -> str:
    """The user of the broker that sent a message; empty where it does not say so."""
    return message.headers.get(USER_ID, "") if isinstance(message.headers, Mapping) else ""


def unread(delivery: Delivery) -> Delivery:
    """A received message that cannot be read, under the id of its dead letter: the same each time that it arrives."""
    message = delivery.message
    return renamed(delivery, UNREAD, repr((message.source, "" if delivery.unidentified else message.id)))


def find_reused(unit: Unit, items: Sequence[Item]) -> int:
    """Note on duplicates that their body is another one than that of the message that has their id. Returns how many.

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
