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

from flowkit.errors import ConfigError
from flowkit.loop import Loop
from flowkit.ports import Delivery, Random
from flowkit.transports.rabbitmq.envelope import delivery
from flowkit.transports.rabbitmq.link import answer, open_channel, said
from flowkit.transports.rabbitmq.queues import Queues

AHEAD = 2
"""The broker sends so many batches ahead: one is there when the one before it is done."""
CONSUME_SECONDS = 3.0
"""While a queue has no leader the broker leaves a consumer without an answer, for a minute (3.10.8); a new connection
asks again sooner."""
AGAIN_SECONDS = 2.0
_log = logging.getLogger("flowkit.rabbitmq")


class RabbitSource:
    """Implements ports.Source. A lane's thread calls its methods; the I/O thread what stands below.

    A channel that is lost takes its unsettled deliveries with it: the broker hands them out again. Settling them later
    changes nothing, because each tag is bound to its channel's epoch.
    """

    def __init__(
        self,
        loop: Loop,
        queues: Queues,
        flow: str,
        limit: int,
        random: Random,
        told: Callable[[], None],
        abandon: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._queues = queues
        self.flow = flow
        self._prefetch = max(2, limit * AHEAD)
        self._random = random
        self._told = told
        self._abandon = abandon
        self._buffer: deque[Delivery] = deque()
        self._channel: Channel | None = None
        self._epoch = 0
        self._unsettled: dict[int, None] = {}
        """Tags that the broker waits for, in their order."""
        self._last = 0
        self._closed = False

    @property
    def stocked(self) -> bool:
        return bool(self._buffer)

    def receive(self, limit: int) -> list[Delivery]:
        taken: list[Delivery] = []
        while len(taken) < limit:
            try:
                taken.append(self._buffer.popleft())
            except IndexError:
                break
        return taken

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            self._loop.call(self._acknowledge, [one.tag for one in deliveries])

    def release(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            self._loop.call(self._requeue, [one.tag for one in deliveries])

    def close(self) -> None:
        self._closed = True
        self._loop.call(self._stop)

    # ------------------------------------------------------------ on the I/O thread

    async def consume(self, connection: AsyncioConnection) -> None:
        """Consume on a new connection; what hinders this queue is said, tried again, and hinders no other one."""
        try:
            if not self._closed:
                await self._open(connection)
        except TimeoutError:
            self._abandon(f"no answer to the consumer of flow {self.flow}")
        except (ConfigError, AMQPError) as error:
            if connection.is_open:
                self._retry(connection, error)

    async def _open(self, connection: AsyncioConnection) -> None:
        self._forget()

        def closed(error: BaseException) -> None:
            if self._channel is channel:
                self._forget()
                if connection.is_open and not self._closed:
                    self._retry(connection, error)

        channel = await open_channel(connection, closed)
        await self._queues.declare(channel, self.flow)
        await answer(channel, lambda done: channel.basic_qos(prefetch_count=self._prefetch, callback=done))
        channel.add_on_cancel_callback(lambda _: channel.close(0, "the queue was deleted"))
        self._channel = channel
        await answer(
            channel,
            lambda done: channel.basic_consume(self._queues.name(self.flow), self._arrived, callback=done),
            CONSUME_SECONDS,
        )
        if self._closed:  # meanwhile
            self._stop()

    def lost(self) -> None:
        """The connection is gone."""
        self._forget()

    def _forget(self) -> None:
        self._channel = None
        self._epoch += 1
        self._last = 0
        self._unsettled.clear()
        self._buffer.clear()

    def _retry(self, connection: AsyncioConnection, error: BaseException) -> None:
        _log.warning("flow %s: its queue cannot be consumed: %s; trying again", self.flow, said(error))

        async def again() -> None:
            await asyncio.sleep(self._random() * AGAIN_SECONDS)
            if connection.is_open:
                await self.consume(connection)

        self._again = asyncio.get_running_loop().create_task(again())

    def _arrived(self, channel: Channel, method: Basic.Deliver, found: BasicProperties, body: bytes) -> None:
        if channel is not self._channel:
            return  # given up: the broker hands it out again
        tag = int(method.delivery_tag or 0)
        self._last = tag
        arrived = delivery(self.flow, self._queues.store, found, body, (self._epoch, tag))
        if arrived is None:
            channel.basic_ack(tag)
            return
        self._unsettled[tag] = None
        self._buffer.append(arrived)
        self._told()

    def _current(self, tags: Sequence[tuple[int, int]]) -> list[int]:
        """The tags of this channel that are not settled yet; those of an earlier one mean nothing any more."""
        known = [tag for epoch, tag in tags if epoch == self._epoch and tag in self._unsettled]
        for tag in known:
            del self._unsettled[tag]
        return known

    def _acknowledge(self, tags: Sequence[tuple[int, int]]) -> None:
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

    def _requeue(self, tags: Sequence[tuple[int, int]]) -> None:
        for tag in self._current(tags):
            if self._channel is not None:
                self._channel.basic_nack(tag)

    def _stop(self) -> None:
        channel = self._channel
        self._forget()
        if channel is not None and channel.is_open:
            channel.close()
