"""What a lane receives: one channel, whose tags are its own."""

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
"""The broker sends so many batches ahead: one is there when the one before it is done."""
CONSUME_SECONDS = 3.0
"""While a queue has no leader the broker leaves a consumer without an answer, for a minute (3.10.8); a new channel asks
again sooner."""
AGAIN_SECONDS = 2.0
MOST_SECONDS = 8.0
"""The waits grow, because a channel without an answer is not closed before that minute is over, and a connection has
2,047 of them."""
Tag = tuple[int, int]
"""The epoch of a channel, and the tag of a delivery in it."""
Arrived = tuple[Basic.Deliver, BasicProperties, bytes, Tag]
_log = logging.getLogger("flowkit.rabbitmq")


class RabbitConsumer:
    """Implements ports.Consumer. A lane's thread calls its methods; the I/O thread what stands below.

    A channel that is lost takes its unsettled deliveries with it: the broker hands them out again. Settling them later
    changes nothing, because each tag is bound to its channel's epoch.
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
        """`told` is called when something came, `judge` when `hindered` has changed."""
        self._loop = loop
        self._queues = queues
        self._signatures = signatures
        self.flow = flow
        self._prefetch = max(2, limit * AHEAD)
        self._random = random
        self._told = told
        self._judge = judge
        self.hindered = "it has not been consumed yet"
        """Why it cannot consume, though there is a connection; empty while it can, and while it is tried again for the
        first time: an election of a leader takes a moment."""
        self._buffer: deque[Arrived] = deque()
        self._channel: Channel | None = None
        self._epoch = 0
        self._unsettled: dict[int, None] = {}
        """Tags that the broker waits for, in their order."""
        self._last = 0
        self.closed = False
        """Whether it receives no more."""
        self._task: asyncio.Task[None] | None = None
        """Consumes on the connection that is there."""

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
                # It stays unsettled: raised here it would cost the lane, again and again.
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
        """Consume on a new connection until it is lost. What hinders this queue hinders no other one.

        Returns what is set when the first try is over.
        """
        tried = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._keep(connection, tried))
        self._task.add_done_callback(lambda _: tried.set())
        return tried

    def lost(self) -> None:
        """The connection is gone, or not wanted any more."""
        if self._task is not None:
            self._task.cancel()
        self._forget()
        if self.closed:
            self._judge()

    async def _keep(self, connection: AsyncioConnection, tried: asyncio.Event) -> None:
        """Have one channel that consumes, and another one when it ends."""
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
                # Whatever it was: without this task the flow would receive nothing any more.
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
        """Consume on a new channel. Returns what will say why it ended. Raises what refused it."""
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
        """Give the channel up, with all that it delivered: the broker hands it out again."""
        channel, self._channel = self._channel, None
        self._epoch += 1
        self._last = 0
        self._unsettled.clear()
        self._buffer.clear()
        close(channel)

    def _arrived(self, channel: Channel, method: Basic.Deliver, found: BasicProperties, body: bytes) -> None:
        if channel is not self._channel:
            return  # given up: the broker hands it out again
        tag = int(method.delivery_tag or 0)
        self._last = tag
        self._unsettled[tag] = None
        self._buffer.append((method, found, body, (self._epoch, tag)))
        self._told()

    def _current(self, tags: Sequence[Tag]) -> list[int]:
        """The tags of this channel that are not settled yet. Those of an earlier channel mean nothing any more, nor do
        those of one that has just been closed and is not given up yet: the broker hands its deliveries out again."""
        if self._channel is None or not self._channel.is_open:
            return []
        known = [tag for epoch, tag in tags if epoch == self._epoch and tag in self._unsettled]
        for tag in known:
            del self._unsettled[tag]
        return known

    def _acknowledge(self, tags: Sequence[Tag]) -> None:
        """All below the lowest unsettled tag at once, the others singly."""
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
    """A message from the queue of a flow. None for one that this store itself gave to an exchange. `shared`: whether
    other programs are met at the channel of the flow.

    May block to read the keys, and raises what that raises.
    """
    if not method.redelivered and COUNT in (found.headers or ()):  # the broker has not counted yet: its sender wrote it
        found.headers = {name: value for name, value in (found.headers or {}).items() if name != COUNT}
    by = method.exchange and (queues.exchange(flow) or method.exchange)
    return delivery(flow, queues.store, found, body, tag, (by or "") if shared else None, queues.name(flow), signatures)
