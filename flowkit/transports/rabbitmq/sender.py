"""Publishes copies, and waits for the broker's confirm of each within a deadline."""

import asyncio
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import takewhile

from pika import BasicProperties
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel
from pika.exceptions import AMQPError
from pika.frame import Method
from pika.spec import Basic

from flowkit.errors import ConfigError
from flowkit.loop import Loop
from flowkit.ports import Clock, Copy, Receipt
from flowkit.transports.rabbitmq.envelope import event, properties, routing_key, row
from flowkit.transports.rabbitmq.link import Link, answer, open_channel, said
from flowkit.transports.rabbitmq.queues import Queues
from flowkit.transports.rabbitmq.signature import Signatures

CONFIRM_SECONDS = 10.0
"""Seconds until a publish without a confirm counts as unknown: it is sent again, on a new connection."""
TOO_LARGE = re.compile(r"message size \d+ (?:is )?larger than configured max size (\d+)")
NO_ACCESS = re.compile(r"access to exchange '([^']*)' in vhost .* refused")
DEFAULT_EXCHANGE = "amq.default"
NO_ACCESS_SECONDS = 30.0
"""Seconds without a publish to an exchange that was refused: each try closes the channel that all copies share."""
RENEWAL_SECONDS = 5.0
"""Seconds between two replacements of a channel that refuses, at least. RabbitMQ (3.10) looks up the leader of a quorum
queue once per channel. If that node has just died, the channel refuses all messages to the queue until it is back."""
_log = logging.getLogger("flowkit.rabbitmq")


class Batch:
    """Copies that were sent together, with their receipts so far."""

    def __init__(self, copies: Sequence[Copy]) -> None:
        self.receipts = [Receipt(copy, False) for copy in copies]
        self.open = len(copies)
        self.done: Future[list[Receipt]] = Future()
        self.task: asyncio.Task[None] | None = None
        """Declares exchanges before the batch is published."""

    def settle(self, number: int, confirmed: bool, reason: str = "") -> None:
        if self.done.done():
            return  # too late: the relay sends it again
        self.receipts[number] = Receipt(self.receipts[number].copy, confirmed, reason)
        self.open -= 1
        if not self.open:
            self.finish()

    def finish(self) -> None:
        """Return the receipts so far to the caller of `send`."""
        if not self.done.done():
            self.done.set_result(self.receipts)


class Sender:
    """Publishes on one channel of one connection. Any thread may call `send`, only the I/O thread the rest."""

    def __init__(
        self,
        loop: Loop,
        queues: Queues,
        signatures: Signatures,
        clock: Clock,
        unrouted: Callable[[str], None],
    ) -> None:
        """The sender calls `unrouted` with the name of an exchange that had no queue for a message."""
        self._loop = loop
        self._queues = queues
        self._signatures = signatures
        self._clock = clock
        self._unrouted = unrouted
        self._channel: Channel | None = None
        self._exchanges: set[str] = set()
        """The exchanges that are known to exist: a publish to a missing one would close the channel."""
        self._most = sys.maxsize
        """Bytes of the largest body that the broker accepts. It reports that limit by closing the channel."""
        self._refused: dict[str, tuple[float, str]] = {}
        """Exchange -> the time of the event loop until which it counts as refused, and the reason."""
        self._connection: AsyncioConnection | None = None
        self._opening: asyncio.Task[None] | None = None
        """Opens a channel in place of a closed one."""
        self._outworn = False
        """Whether the channel accepts no more copies, and is replaced once the broker has answered all on it."""
        self._renewed = 0.0
        """The time of the event loop when a channel was last replaced."""
        self._tag = 0
        self._pending: dict[int, tuple[Batch, int]] = {}
        """Delivery tag -> batch and number of its copy, in the order of sending."""
        self._returned: dict[str, str] = {}
        """Row -> why the broker returned it. Its confirm follows."""
        self._batches: set[Batch] = set()
        self.link: Link | None = None
        self.blocked = ""
        """Why the broker accepts no messages now; empty if it does."""

    @property
    def ready(self) -> bool:
        """Whether a send has a chance now."""
        return self._channel is not None and not self.blocked and not self._outworn

    def send(self, copies: Sequence[Copy]) -> list[Receipt]:
        """Publish copies, and block until their confirms or the deadline. Returns at once while not `ready`.

        Raises the errors of reading the keys.
        """
        batch = Batch(copies)
        if not copies or not self.ready:
            return batch.receipts
        self._signatures.look()
        self._loop.call(self._begin, batch)
        return batch.done.result()

    async def opened(self, connection: AsyncioConnection) -> None:
        # The callbacks check their connection: an abandoned one lives on until its heartbeats stop.
        self._connection = connection
        connection.add_on_connection_blocked_callback(
            lambda _, frame: self._block(connection, frame.method.reason or "blocked")
        )
        connection.add_on_connection_unblocked_callback(lambda *_: self._block(connection, ""))
        await self._open(connection)

    def lost(self) -> None:
        """Return every unconfirmed copy as unknown, and forget the connection."""
        self._channel, self._outworn = None, False
        if self._opening is not None:
            self._opening.cancel()
        self._exchanges.clear()
        self._most = sys.maxsize
        self.blocked = ""
        self._tag = 0
        self._pending.clear()
        self._returned.clear()
        batches, self._batches = self._batches, set()
        for batch in batches:
            batch.finish()

    def _block(self, connection: AsyncioConnection, reason: str) -> None:
        if connection is not self._connection:
            return
        self.blocked = reason
        if reason:
            _log.warning("RabbitMQ accepts no messages now: %s; they wait in the database", reason)
        else:
            _log.info("RabbitMQ accepts messages again")

    async def _open(self, connection: AsyncioConnection) -> None:
        def closed(error: BaseException) -> None:
            if self._channel is channel:
                _log.warning("RabbitMQ closed the publishing channel: %s", said(error))
                self.lost()
                self._learn(said(error))
                if connection.is_open:
                    self._open_again(connection)

        channel = await open_channel(connection, closed)
        channel.add_on_return_callback(self._came_back)
        # The callback checks its channel: an abandoned one may answer late, with tags that belong to other copies now.
        confirmed = partial(self._answered, channel)
        await answer(channel, lambda done: channel.confirm_delivery(confirmed, done))
        self._channel = channel

    def _learn(self, why: str) -> None:
        """Learn from the reason of a closed channel which publish closed it, so that a retry does not close another."""
        if too_large := TOO_LARGE.search(why):
            self._most = int(too_large[1])
        if no_access := NO_ACCESS.search(why):
            exchange = no_access[1] if no_access[1] != DEFAULT_EXCHANGE else ""
            self._refused[exchange] = (asyncio.get_running_loop().time() + NO_ACCESS_SECONDS, why)

    def _open_again(self, connection: AsyncioConnection) -> None:
        self._opening = asyncio.get_running_loop().create_task(self._open(connection))
        self._opening.add_done_callback(partial(self._opened_again, connection))

    def _opened_again(self, connection: AsyncioConnection, opening: "asyncio.Task[None]") -> None:
        if not opening.cancelled() and (error := opening.exception()) is not None and self.link is not None:
            self.link.abandon(connection, f"no publishing channel: {said(error)}")

    def _begin(self, batch: Batch) -> None:
        if self._channel is None or self._outworn:
            batch.finish()
            return
        self._batches.add(batch)
        batch.done.add_done_callback(lambda _: self._batches.discard(batch))
        loop = asyncio.get_running_loop()
        expiry = loop.call_later(CONFIRM_SECONDS, self._expire, batch)
        batch.done.add_done_callback(lambda _: expiry.cancel())
        unknown = {receipt.copy.exchange for receipt in batch.receipts} - self._exchanges - {""}
        if unknown:
            batch.task = loop.create_task(self._declare_first(batch, unknown))
        else:
            self._publish(batch, self._refusals())

    async def _declare_first(self, batch: Batch, exchanges: set[str]) -> None:
        """Declare these exchanges, then publish."""
        refused = self._refusals()
        try:
            for name in sorted(exchanges - refused.keys()):
                assert self.link is not None
                assert self.link.connection is not None
                channel = await open_channel(self.link.connection, lambda _: None)
                try:
                    await self._queues.declare_exchange(channel, name)
                    self._exchanges.add(name)
                    channel.close()
                except ConfigError as error:
                    refused[name] = str(error)
        except (AMQPError, TimeoutError) as error:
            _log.warning("RabbitMQ did not declare exchanges %s: %s", ", ".join(sorted(exchanges)), said(error))
            batch.finish()
        else:
            self._publish(batch, refused)

    def _refusals(self) -> dict[str, str]:
        """Exchange -> why nothing is published to it now."""
        now = asyncio.get_running_loop().time()
        return {exchange: why for exchange, (until, why) in self._refused.items() if until > now}

    def _publish(self, batch: Batch, refused: Mapping[str, str]) -> None:
        channel = self._channel
        if channel is None or batch.done.done():
            batch.finish()
            return
        for number, receipt in enumerate(batch.receipts):
            copy = receipt.copy
            try:
                if copy.exchange in refused:
                    batch.settle(number, False, refused[copy.exchange])
                    continue
                if len(copy.message.body) > self._most:
                    batch.settle(number, False, f"RabbitMQ takes {self._most:,} bytes at most (max_message_size)")
                    continue
                channel.basic_publish(*self._addressed(copy))
            except AMQPError as error:
                batch.settle(number, False, said(error))
            else:
                self._tag += 1
                self._pending[self._tag] = (batch, number)

    def _addressed(self, copy: Copy) -> tuple[str, str, bytes, BasicProperties, bool]:
        """The arguments of a publish: exchange, routing key, body, properties, mandatory."""
        exchange, body = copy.exchange, copy.message.body
        if exchange:
            mandatory = exchange not in self._queues.optional
            made = event(copy, self._queues.store, self._signatures)
            return exchange, routing_key(copy), body, made, mandatory
        queue = self._queues.name(copy.flow)
        return "", queue, body, properties(copy, copy.staged or self._clock.now(), queue, self._signatures), True

    def _answered(self, channel: Channel, frame: "Method[Basic.Ack | Basic.Nack]") -> None:
        """Handle the broker's confirm or refusal of one copy, or of all copies up to it."""
        if channel is not self._channel:
            return
        answered = frame.method
        last = int(answered.delivery_tag or 0)
        for tag in list(takewhile(lambda tag: tag <= last, self._pending)) if answered.multiple else [last]:
            batch, number = self._pending.pop(tag)
            reason = self._returned.pop(batch.receipts[number].copy.row, "") if self._returned else ""
            if isinstance(answered, Basic.Nack):
                reason = "RabbitMQ refused it; is its queue full, or without a leader?"
                self._outworn |= asyncio.get_running_loop().time() - self._renewed >= RENEWAL_SECONDS
            batch.settle(number, not reason, reason)
        if self._outworn and not self._pending:
            self._renew(channel)

    def _renew(self, channel: Channel) -> None:
        """Replace a channel on which the broker has answered every publish."""
        self._renewed = asyncio.get_running_loop().time()
        self._channel, self._outworn, self._tag = None, False, 0
        channel.close()
        assert self._connection is not None  # the channel's own: without it, the channel would be gone too
        self._open_again(self._connection)

    def _came_back(self, channel: Channel, method: Basic.Return, found: BasicProperties, body: bytes) -> None:
        if channel is self._channel:
            missing = f"queue at exchange {method.exchange}" if method.exchange else f"queue {method.routing_key}"
            if method.exchange:
                self._unrouted(method.exchange)
            self._returned[row(found)] = f"RabbitMQ has no {missing} ({method.reply_text})"

    def _expire(self, batch: Batch) -> None:
        if not batch.done.done():
            if self.link is not None and not self.blocked:
                self.link.abandon(self._connection, f"a publish was not confirmed within {CONFIRM_SECONDS:g}s")
            batch.finish()
