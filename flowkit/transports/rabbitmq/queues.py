"""The queues of flows and the exchanges of shared channels: their names and arguments, and declaring them."""

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
"""Arguments of a queue, explicit whatever the broker's defaults: replicated; refusing messages rather than dropping
them; never dropping one for its number of deliveries. Every disconnect raises that number for all messages in flight;
a message that kills its process is found by another trace (see `engine/in_flight.py`)."""
DENIED, MISSING, MISMATCH = 403, 404, 406
LOOKS, LOOK_SECONDS = 20, 0.1
"""Looks for a remaining consumer of a queue, and seconds between them: one that has just ended counts for a moment."""
Taken = tuple[Basic.GetOk, BasicProperties, bytes]
"""A message that the broker returned to a Basic.Get."""


class Queues:
    """The queues of one store: `flowkit.STORE.APP.FLOW`.

    Copies reach a queue through the default exchange. The queues of a shared channel's flows are also bound to the
    topic exchange with the name of the channel.
    """

    def __init__(self, store: str) -> None:
        self.store = store
        self.optional: set[str] = set()
        """Exchanges that need no queue: messages to them may go nowhere."""
        self._bound: dict[str, str] = {}
        """Flow -> the exchange that its queue is bound to."""

    def share(self, shared: Collection[Shared]) -> None:
        """Bind the queues of flows to the exchanges of these shared channels, from the next declaration on."""
        self._bound |= {flow: one.channel for one in shared for flow in one.flows}
        self.optional |= {one.channel for one in shared if one.optional}

    def name(self, flow: str) -> str:
        """The name of a flow's queue."""
        return f"flowkit.{self.store}.{flow}"

    async def declare(self, channel: Channel, flow: str) -> None:
        """Create and bind the queue of a flow. Raises ConfigError if it exists with other arguments."""
        await self.declare_queue(channel, flow)
        await self.bind(channel, flow)

    async def declare_queue(self, channel: Channel, flow: str) -> None:
        """Create the queue of a flow, without binding it. Raises like `declare`."""
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
        """Create the exchange of a flow's shared channel, and bind the flow's queue to it. Raises like
        `declare_exchange`."""
        exchange = self.exchange(flow)
        if exchange:
            await self.declare_exchange(channel, exchange)
            await self._bind(channel, flow)

    async def bind_again(self, channel: Channel, flow: str) -> bool:
        """Bind the queue of a flow to its exchange. Returns False if there is no exchange; the broker then closes the
        channel."""
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
        """Whether an exchange exists. If not, the broker closes the channel."""
        try:
            await answer(channel, lambda done: channel.exchange_declare(name, passive=True, callback=done))
        except ChannelClosed as error:
            if error.reply_code != MISSING:
                raise
            return False
        return True

    async def declare_exchange(self, channel: Channel, name: str) -> None:
        """Create the exchange of a shared channel. Raises ConfigError if one of that name is not a durable topic."""
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
        """The number of messages in the queue of a flow, without those in flight. Returns None if there is no queue;
        the broker then closes the channel."""
        found = await self._look(channel, flow)
        return None if found is None else int(found.message_count)

    async def take(self, channel: Channel, flow: str, limit: int) -> list[Taken] | None:
        """Receive up to `limit` messages of a queue without consumers. They stay in flight until the channel
        acknowledges them.

        Returns None if there is no queue; the broker then closes the channel. Raises ConfigError if it has consumers.
        """
        name, taken, looks = self.name(flow), list[Taken](), 0
        while (found := await self._look(channel, flow)) is not None and found.consumer_count:
            looks += 1
            if looks > LOOKS:
                raise ConfigError(
                    f"{found.consumer_count} consumer(s) still receive from queue {name}; stop the instances that run "
                    f"flow {flow}, and run this again"
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
        """Delete the queue of a flow, with its messages."""
        await answer(channel, lambda done: channel.queue_delete(self.name(flow), callback=done))

    async def _look(self, channel: Channel, flow: str) -> Queue.DeclareOk | None:
        """Ask the broker about the queue of a flow. Returns None if there is none; then the channel is closed."""
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
    """Ask for one message of a queue, and call `done` with it; with None if the queue is empty."""
    channel.add_callback(lambda _: done(None), [Basic.GetEmpty])
    channel.basic_get(name, lambda _, method, properties, body: done((method, properties, body)))
