"""Accepting messages from outside the flows: validate, commit, answer."""

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextvars import ContextVar

from flowkit.errors import (
    CommitUnknown,
    FlowKitError,
    OutcomeUnknown,
    Reused,
    StoreConflict,
    StoreUnavailable,
    Unrouted,
)
from flowkit.fork import refuse_child
from flowkit.message import Message
from flowkit.model.outbox import Context, Outgoing, unrouted
from flowkit.ports import Copy, Delivery, Store, Tally, Unit

TRIES = 10
Waiting = tuple[Sequence[Outgoing], "Future[None]"]
"""Messages of one caller, and what tells it that they are committed."""
handling: ContextVar[str | None] = ContextVar("handling", default=None)
"""The flow whose handler runs in this thread. It sends through its outbox, never through a publisher."""


class Publisher:
    """Accepts messages in transactions of its own. Callers that arrive while one commits share the next.

    Any thread may call it; every call blocks until its messages are committed.
    """

    def __init__(self, store: Store, context: Context) -> None:
        self._store = store
        self._context = context
        self._lane = f"publish-{context.ids()}"
        self._gate = threading.Lock()
        self._committing = threading.Lock()
        self._waiting: list[Waiting] = []
        self._process = os.getpid()

    def publish(self, messages: Sequence[Outgoing], optional: frozenset[str] = frozenset()) -> None:
        """Accept these messages, once per id. `optional` names the channels that may have no subscriber.

        Raises Unrouted, Reused, StoreUnavailable (nothing was accepted) or OutcomeUnknown (send again under the same
        id).
        """
        flow = handling.get()
        if flow is not None:
            raise FlowKitError(
                f"flow {flow} published from inside its handler: the message would leave even if the handler's "
                "transaction does not commit; return it, or take a parameter `outbox: Outbox` and send it there"
            )
        refuse_child(self._process)  # a thread that is not in the child may hold these locks
        mine: Future[None] = Future()
        with self._gate:
            self._waiting.append((messages, mine))
        with self._committing:
            if not mine.done():
                with self._gate:
                    together, self._waiting = self._waiting, []
                self.commit(together, optional)
        mine.result()

    def commit(self, together: Sequence[Waiting], optional: frozenset[str] = frozenset()) -> None:
        """One transaction for all callers; where it is refused, one for each, so that none pays for another.

        Each learns from its future what `publish` would raise. Blocks.
        """
        try:
            flows = self._accept([one for messages, _ in together for one in messages], optional)
        except CommitUnknown:
            for messages, future in together:
                future.set_exception(OutcomeUnknown(*(one.message.id for one in messages)))
        except BaseException as error:
            cause = self._store.classify(error)
            if len(together) == 1:
                together[0][1].set_exception(cause)
            for number, one in enumerate(together if len(together) > 1 else ()):
                self.commit([one], optional)
                away = one[1].exception()
                if isinstance(away, StoreUnavailable):
                    # Not the fault of one of them, or the next would not wait for the same.
                    for _, future in together[number + 1 :]:
                        future.set_exception(away)
                    break
        else:
            for _, future in together:
                future.set_result(None)
            self._store.notify(flows)

    def _accept(self, messages: Sequence[Outgoing], optional: frozenset[str]) -> set[str]:
        """One transaction, done again when it collides with another. Returns the flows that got copies."""
        conflict: StoreConflict | None = None
        for again in range(TRIES):
            try:
                with self._store.unit("", lane=self._lane) as unit:
                    flows = stage(unit, messages, self._context, optional)
                    unit.commit()
                    return flows
            except CommitUnknown:
                raise
            except StoreUnavailable:
                if again:
                    raise  # not just a pooled connection that died while it was idle
            except StoreConflict as error:
                conflict = error
        raise StoreUnavailable(f"{TRIES} transactions in a row collided with others; nothing was accepted: {conflict}")


def stage(
    unit: Unit, messages: Sequence[Outgoing], context: Context, optional: frozenset[str] = frozenset()
) -> set[str]:
    """Stage one copy for each subscribed flow of messages that were not accepted before. Returns those flows.

    An id is accepted once: it is claimed in the inbox under the channel's name, so that a resend after an unknown
    outcome changes nothing, however late the first one commits. The claim keeps the digest of the body, where there is
    one. The digest of a request is claimed besides, as instances of the version before do, and look for it: a digest
    that can be claimed under an id that was accepted before is that of another request. Raises Reused for those.
    """
    routes = unit.subscribers({one.message.channel for one in messages})
    for one in messages:
        if not routes.get(one.message.channel) and one.message.channel not in optional:
            raise Unrouted(unrouted(one.message.channel))
    entries = [Delivery(one.message, f"channel:{one.message.channel}", digest=one.digest) for one in messages]
    requests = [
        Delivery(one.message._replace(source=one.request), f"digest:{one.message.channel}")
        for one in messages
        if one.request
    ]
    fresh = unit.claim([*entries, *requests])
    copies: list[Copy] = []
    again: list[Delivery] = []
    for one, entry in zip(messages, entries, strict=True):
        new = fresh.pop(entry.identity, None) is not None
        if new:
            copies += address(one, routes, context)
        elif one.digest:
            again.append(entry)
        known = (f"digest:{one.message.channel}", one.request, one.message.id)
        if fresh.pop(known, None) is not None and one.request and not new:
            raise reused(one.message)
    digests = unit.digests(again) if again else {}
    for entry in again:
        if digests.get(entry.identity) not in (None, "", entry.digest):
            raise reused(entry.message)
    unit.stage(copies)
    unit.count(accepted(copies))
    return {copy.flow for copy in copies}


def reused(message: Message) -> Reused:
    """What to say of an id that was accepted before with another body."""
    return Reused(
        f"channel {message.channel}: message {message.id} was accepted before with another body; give this one another "
        "id, or send what was sent before"
    )


def address(one: Outgoing, routes: Mapping[str, Sequence[str]], context: Context) -> list[Copy]:
    """One copy of a message for each flow that is subscribed to its channel."""
    return [Copy(context.ids(), one.message, flow, delay=one.delay) for flow in routes.get(one.message.channel, ())]


def accepted(copies: Sequence[Copy]) -> dict[str, Tally]:
    """The ledger entry of newly staged copies, of those for flows."""
    counts: dict[str, int] = {}
    for copy in copies:
        if not copy.exchange:
            counts[copy.flow] = counts.get(copy.flow, 0) + 1
    return {flow: Tally(accepted=count) for flow, count in counts.items()}
