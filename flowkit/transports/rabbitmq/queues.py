"""The queues, and the exchanges where other programs are met: their names, what they have to be, declaring them."""

import asyncio
from collections.abc import Callable, Collection
from functools import partial

from pika import BasicProperties
from pika.channel import Channel
from pika.exceptions import ChannelClosed
from pika.spec import Basic, Queue

from flowkit.errors import ConfigError
from flowkit.ports import Shared
from flowkit.transports.rabbitmq.link import answer, said

ARGUMENTS = {
    "x-queue-type": "quorum",
    "x-overflow": "reject-publish",
    "x-delivery-limit": 2**31 - 1,
}
"""Explicit, whatever the broker's version takes for granted: replicated, refusing rather than dropping, and never
dropping for its number of deliveries. Those rise with every disconnect, for every message that was on its way; what
kills its process is found by its own trace (see `engine/in_flight.py`)."""
DENIED, MISSING, MISMATCH = 403, 404, 406
LOOKS, LOOK_SECONDS = 20, 0.1
"""So often it is seen whether a queue has a consumer left: one that has just ended counts for a moment."""
Taken = tuple[Basic.GetOk, BasicProperties, bytes]
"""A message that was asked for."""


class Queues:
    """The queues of one store: `flowkit.STORE.APP.FLOW`, reached through the default exchange; those of flows at a
    shared channel also through the topic exchange of its name."""

    def __init__(self, store: str) -> None:
        self.store = store
        self.optional: set[str] = set()
        """Exchanges whose messages may go nowhere."""
        self._bound: dict[str, str] = {}
        """Flow -> the exchange that its queue is bound to."""

    def share(self, shared: Collection[Shared]) -> None:
        """From the next declaration on, bind the queues of flows to the exchanges of shared channels."""
        self._bound |= {flow: one.channel for one in shared for flow in one.flows}
        self.optional |= {one.channel for one in shared if one.optional}

    def name(self, flow: str) -> str:
        """The name of a flow's queue."""
        return f"flowkit.{self.store}.{flow}"

    async def declare(self, channel: Channel, flow: str) -> None:
        """Make and bind the queue of a flow, or see that it is what it must be. Raises ConfigError when it is not."""
        await self.declare_queue(channel, flow)
        await self.bind(channel, flow)

    async def declare_queue(self, channel: Channel, flow: str) -> None:
        """The same, without binding it."""
        name = self.name(flow)
        try:
            await answer(
                channel, lambda done: channel.queue_declare(name, durable=True, arguments=ARGUMENTS, callback=done)
            )
        except ChannelClosed as error:
            if error.reply_code != MISMATCH:
                raise
            raise ConfigError(
                f"RabbitMQ has a queue {name} that is not as FlowKit declares it: {said(error)}; "
                "drain it, delete it, and start again"
            ) from None

    def exchange(self, flow: str) -> str:
        """The exchange that the queue of a flow is bound to; empty if its channel is not shared."""
        return self._bound.get(flow, "")

    async def bind(self, channel: Channel, flow: str) -> None:
        """Bind the queue of a flow to the exchange of its shared channel. Makes that. Raises as `declare_exchange`."""
        exchange = self.exchange(flow)
        if exchange:
            await self.declare_exchange(channel, exchange)
            await self._bind(channel, flow)

    async def bind_again(self, channel: Channel, flow: str) -> bool:
        """Bind the queue of a flow to its exchange. False: there is no such exchange, and the channel is closed."""
        try:
            await self._bind(channel, flow)
        except ChannelClosed as error:
            if error.reply_code != MISSING:
                raise
            return False
        return True

    async def _bind(self, channel: Channel, flow: str) -> None:
        name, exchange = self.name(flow), self.exchange(flow)
        await answer(channel, lambda done: channel.queue_bind(name, exchange, "#", callback=done))

    async def has_exchange(self, channel: Channel, name: str) -> bool:
        """Whether an exchange is there. If it is not, the channel is closed."""
        try:
            await answer(channel, lambda done: channel.exchange_declare(name, passive=True, callback=done))
        except ChannelClosed as error:
            if error.reply_code != MISSING:
                raise
            return False
        return True

    async def declare_exchange(self, channel: Channel, name: str) -> None:
        """Make the exchange of a shared channel, or see that it is one. Raises ConfigError when it is not."""
        try:
            await answer(channel, lambda done: channel.exchange_declare(name, "topic", durable=True, callback=done))
        except ChannelClosed as error:
            if error.reply_code not in (MISMATCH, DENIED):
                raise
            raise ConfigError(
                f"RabbitMQ refuses the durable topic exchange {name} of the shared channel: "
                f"{said(error)}; give the channel another name, and bind that exchange to the one that is there"
            ) from None

    async def depth(self, channel: Channel, flow: str) -> int | None:
        """Messages that wait in the queue of a flow, without those that a worker has in hand. None: there is no queue,
        and the channel is closed."""
        found = await self._look(channel, flow)
        return None if found is None else int(found.message_count)

    async def take(self, channel: Channel, flow: str, limit: int) -> list[Taken] | None:
        """Up to so many messages of a queue that nobody consumes. They are the channel's until it acknowledges them.

        None: there is no queue, and the channel is closed. Raises ConfigError when somebody consumes it.
        """
        name, taken, looks = self.name(flow), list[Taken](), 0
        while (found := await self._look(channel, flow)) is not None and found.consumer_count:
            looks += 1
            if looks > LOOKS:
                raise ConfigError(
                    f"{found.consumer_count} consumer(s) still receive from queue {name}; stop the instances that run "
                    f"flow {flow}, and ask again"
                )
            await asyncio.sleep(LOOK_SECONDS)
        if found is None:
            return None
        while len(taken) < limit:
            came = await answer(channel, partial(_get, channel, name))
            if came is None:
                break
            taken.append(came)
        return taken

    async def delete(self, channel: Channel, flow: str) -> None:
        """Delete the queue of a flow, with all that is in it."""
        await answer(channel, lambda done: channel.queue_delete(self.name(flow), callback=done))

    async def _look(self, channel: Channel, flow: str) -> Queue.DeclareOk | None:
        """Ask the broker about the queue of a flow. None: there is none, and the channel is closed."""
        name = self.name(flow)
        try:
            frame = await answer(channel, lambda done: channel.queue_declare(name, passive=True, callback=done))
        except ChannelClosed as error:
            if error.reply_code != MISSING:
                raise
            return None
        found: Queue.DeclareOk = frame.method
        return found


def _get(channel: Channel, name: str, done: Callable[[Taken | None], None]) -> None:
    """Ask for one message of a queue."""
    channel.add_callback(lambda _: done(None), [Basic.GetEmpty])
    channel.basic_get(name, lambda _, method, properties, body: done((method, properties, body)))
