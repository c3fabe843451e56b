"""The publisher: accepts messages from outside the flows. It validates, commits, and answers."""

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
"""Messages of one caller, and the future that reports their commit."""
handling: ContextVar[str | None] = ContextVar("handling", default=None)
"""The flow whose handler runs in this thread. A handler sends through its outbox, never through a publisher."""


class Publisher:
    """Accepts messages in its own transactions. Callers that arrive during a commit share the next transaction.

    Any thread may call it. Every call blocks until its messages are committed.
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
        """Accept these messages, once per id. `optional`: channels that may have no subscriber. Blocks.

        Raises Unrouted, Reused or StoreUnavailable if nothing was accepted; OutcomeUnknown if that is unknown: send
        again with the same ids. Raises FlowKitError inside a handler.
        """
        flow = handling.get()
        if flow is not None:
            raise FlowKitError(
                f"flow {flow} published from inside its handler: the message would leave even if the handler's "
                "transaction does not commit; return it, or take a parameter `outbox: Outbox` and send it there"
            )
        refuse_child(self._process)  # in a forked child, a thread that does not exist there may hold these locks
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
        """Commit the messages of all callers in one transaction. If it is refused, commit each caller's in its own, so
        that no caller fails because of another. Each future gets the error that `publish` raises. Blocks.
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
                    # No caller caused this; the others would only wait for the same error.
                    for _, future in together[number + 1 :]:
                        future.set_exception(away)
                    break
        else:
            for _, future in together:
                future.set_result(None)
            self._store.notify(flows)

    def _accept(self, messages: Sequence[Outgoing], optional: frozenset[str]) -> set[str]:
        """Stage and commit the messages in one transaction; after a conflict, try again. Returns the flows that got
        copies."""
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
                    raise  # the first time, a pooled connection may have died while it was idle
            except StoreConflict as error:
                conflict = error
        raise StoreUnavailable(f"{TRIES} transactions in a row collided with others; nothing was accepted: {conflict}")


def stage(
    unit: Unit, messages: Sequence[Outgoing], context: Context, optional: frozenset[str] = frozenset()
) -> set[str]:
    """Stage one copy of each new message for each subscribed flow. Returns those flows.

    An id is accepted once: it is claimed in the inbox under the channel's name. A resend after an unknown outcome
    therefore changes nothing, however late the first transaction commits. The claim stores the digest of the body, if
    there is one. The digest of a request is claimed too, because instances of FlowKit's previous version look for it.
    If an id is known and the digest of its request is new, the request is another one. Raises Reused for such
    messages, and Unrouted for a channel without subscribers that is not `optional`. Blocks.
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
    """The error for an id that was accepted before with another body."""
    return Reused(
        f"channel {message.channel}: message {message.id} was accepted before with another body; give this one another "
        "id, or send the same body as before"
    )


def address(one: Outgoing, routes: Mapping[str, Sequence[str]], context: Context) -> list[Copy]:
    """One copy of a message for each flow subscribed to its channel."""
    return [Copy(context.ids(), one.message, flow, delay=one.delay) for flow in routes.get(one.message.channel, ())]


def accepted(copies: Sequence[Copy]) -> dict[str, Tally]:
    """The ledger entries of newly staged copies: flow -> tally. Copies for other programs have none."""
    counts: dict[str, int] = {}
    for copy in copies:
        if not copy.exchange:
            counts[copy.flow] = counts.get(copy.flow, 0) + 1
    return {flow: Tally(accepted=count) for flow, count in counts.items()}
