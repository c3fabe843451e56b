"""The consumer of a lane: it consumes one queue on a channel of its own."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

from pika import BasicProperties
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel
from pika.exceptions import AMQPError
from pika.spec import Basic

from flowkit.errors import ConfigError, FlowKitError
from flowkit.loop import Loop
from flowkit.ports import Delivery, Random
from flowkit.transports.rabbitmq.envelope import COUNT, delivery
from flowkit.transports.rabbitmq.link import answer, close, open_channel, resolve, said
from flowkit.transports.rabbitmq.queues import Queues
from flowkit.transports.rabbitmq.signature import Signatures

AHEAD = 2
"""Batches that the broker sends in advance: the next one is there when one is finished."""
CONSUME_SECONDS = 3.0
"""Seconds to wait for the broker's answer to a consumer. While a queue has no leader, there is none for a minute
(3.10.8); a new channel may get one sooner."""
AGAIN_SECONDS = 2.0
MOST_SECONDS = 8.0
"""Seconds of the first and the longest wait for a new channel. The waits grow because a channel without an answer stays
open for that minute, and a connection has 2,047 channels."""
Tag = tuple[int, int]
"""The epoch of a channel, and the tag of a delivery in it."""
Arrived = tuple[Basic.Deliver, BasicProperties, bytes, Tag]
_log = logging.getLogger("flowkit.rabbitmq")


class RabbitConsumer:
    """Implements ports.Consumer. A lane's thread calls the port's methods, the I/O thread the others.

    When a channel is lost, the broker delivers its unsettled messages again. Settling the lost deliveries later changes
    nothing: each tag is bound to its channel's epoch.
    """

    def __init__(
        self,
        loop: Loop,
        queues: Queues,
        signatures: Signatures,
        flow: str,
        limit: int,
        random: Random,
        told: Callable[[], None],
        judge: Callable[[], None],
    ) -> None:
        """The consumer calls `told` when a message arrives, and `judge` when `hindered` changes."""
        self._loop = loop
        self._queues = queues
        self._signatures = signatures
        self.flow = flow
        self._prefetch = max(2, limit * AHEAD)
        self._random = random
        self._told = told
        self._judge = judge
        self.hindered = "it has not been consumed yet"
        """Why it cannot consume although there is a connection. Empty while it can, and during its first retry: the
        election of a leader takes a moment."""
        self._buffer: deque[Arrived] = deque()
        self._channel: Channel | None = None
        self._epoch = 0
        self._unsettled: dict[int, None] = {}
        """Delivery tags without an acknowledgement, in ascending order."""
        self._last = 0
        self.closed = False
        """Whether it has stopped receiving for good."""
        self._task: asyncio.Task[None] | None = None
        """Consumes on the current connection."""

    @property
    def stocked(self) -> bool:
        return bool(self._buffer)

    def receive(self, limit: int) -> list[Delivery]:
        taken: list[Delivery] = []
        passed: list[Tag] = []
        if self._buffer:
            self._signatures.look()
        shared = bool(self._queues.exchange(self.flow))
        while len(taken) < limit:
            try:
                method, found, body, tag = self._buffer.popleft()
            except IndexError:
                break
            try:
                one = received(self._queues, self._signatures, self.flow, method, found, body, tag, shared)
            except FlowKitError:  # the keys could not be read
                self._loop.call(self._requeue, [tag, *passed, *(other.tag for other in taken)])
                raise
            except Exception:
                # The message stays unsettled: its error would end the lane again and again.
                _log.exception("flow %s: message %s was left in its queue", self.flow, found.message_id)
                continue
            if one is None:
                passed.append(tag)
            else:
                taken.append(one)
        if passed:
            self._loop.call(self._acknowledge, passed)
        return taken

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            self._loop.call(self._acknowledge, [one.tag for one in deliveries])

    def release(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            self._loop.call(self._requeue, [one.tag for one in deliveries])

    def close(self) -> None:
        self.closed = True
        self._loop.call(self.lost)

    # ------------------------------------------------------------ on the I/O thread

    def consume(self, connection: AsyncioConnection) -> asyncio.Event:
        """Consume on a new connection until it is lost. A hindrance of this queue affects no other queue.

        Returns an event that is set after the first try.
        """
        tried = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._keep(connection, tried))
        self._task.add_done_callback(lambda _: tried.set())
        return tried

    def lost(self) -> None:
        """Stop consuming: the connection was lost, or the consumer is closed."""
        if self._task is not None:
            self._task.cancel()
        self._forget()
        if self.closed:
            self._judge()

    async def _keep(self, connection: AsyncioConnection, tried: asyncio.Event) -> None:
        """Keep one channel consuming: open another when it ends."""
        wait, told, failed = AGAIN_SECONDS, "", 0
        while connection.is_open and not self.closed:
            try:
                ended = await self._open(connection)
                self._find("")
                tried.set()
                if told:
                    _log.info("flow %s: its queue is consumed again", self.flow)
                wait, told, failed = AGAIN_SECONDS, "", 0
                error = await ended
            except Exception as failure:
                # Any error: without this task the flow would receive nothing any more.
                error = failure
            tried.set()
            self._forget()
            failed += 1
            if failed > 1 or self.hindered:
                self._find(said(error))
            if connection.is_open and said(error) != told:
                told = said(error)
                known = isinstance(error, AMQPError | ConfigError | TimeoutError)
                _log.warning(
                    "flow %s: its queue cannot be consumed: %s; trying again",
                    self.flow,
                    told,
                    exc_info=None if known else error,
                )
            await asyncio.sleep(self._random() * wait)
            wait = min(wait * 2, MOST_SECONDS)

    def _find(self, hindered: str) -> None:
        if hindered != self.hindered:
            self.hindered = hindered
            self._judge()

    async def _open(self, connection: AsyncioConnection) -> "asyncio.Future[BaseException]":
        """Consume on a new channel. Returns a future of the reason for which it will end. Raises pika's errors."""
        ended: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._channel = channel = await open_channel(connection, resolve(ended))
        await self._queues.declare(channel, self.flow)
        await answer(channel, lambda done: channel.basic_qos(prefetch_count=self._prefetch, callback=done))
        channel.add_on_cancel_callback(lambda _: close(channel, "the queue was deleted"))
        await answer(
            channel,
            lambda done: channel.basic_consume(self._queues.name(self.flow), self._arrived, callback=done),
            CONSUME_SECONDS,
        )
        return ended

    def _forget(self) -> None:
        """Give up the channel and its unsettled deliveries: the broker delivers them again."""
        channel, self._channel = self._channel, None
        self._epoch += 1
        self._last = 0
        self._unsettled.clear()
        self._buffer.clear()
        close(channel)

    def _arrived(self, channel: Channel, method: Basic.Deliver, found: BasicProperties, body: bytes) -> None:
        if channel is not self._channel:
            return  # an abandoned channel: the broker delivers it again
        tag = int(method.delivery_tag or 0)
        self._last = tag
        self._unsettled[tag] = None
        self._buffer.append((method, found, body, (self._epoch, tag)))
        self._told()

    def _current(self, tags: Sequence[Tag]) -> list[int]:
        """Mark tags of this channel as settled, and return them. Ignores tags of an earlier or a closed channel: the
        broker delivers those messages again."""
        if self._channel is None or not self._channel.is_open:
            return []
        known = [tag for epoch, tag in tags if epoch == self._epoch and tag in self._unsettled]
        for tag in known:
            del self._unsettled[tag]
        return known

    def _acknowledge(self, tags: Sequence[Tag]) -> None:
        """Acknowledge all tags below the lowest unsettled one together, and the others singly."""
        done = self._current(tags)
        if self._channel is None or not done:
            return
        lowest = next(iter(self._unsettled), self._last + 1)
        below = [tag for tag in done if tag < lowest]
        if below:
            self._channel.basic_ack(max(below), multiple=True)
        for tag in done:
            if tag > lowest:
                self._channel.basic_ack(tag)

    def _requeue(self, tags: Sequence[Tag]) -> None:
        for tag in self._current(tags):
            if self._channel is not None:
                self._channel.basic_nack(tag)


def received(
    queues: Queues,
    signatures: Signatures,
    flow: str,
    method: Basic.Deliver | Basic.GetOk,
    found: BasicProperties,
    body: bytes,
    tag: object,
    shared: bool,
) -> Delivery | None:
    """Return the delivery of a message from the queue of a flow, whose channel may be `shared` with other programs.

    Returns None for an event that this store itself sent to an exchange. May block to read the keys, and raises the
    errors of that.
    """
    if not method.redelivered and COUNT in (found.headers or ()):  # only the sender can have written it
        found.headers = {name: value for name, value in (found.headers or {}).items() if name != COUNT}
    by = method.exchange and (queues.exchange(flow) or method.exchange)
    return delivery(flow, queues.store, found, body, tag, (by or "") if shared else None, queues.name(flow), signatures)
