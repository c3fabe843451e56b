"""The queues: their names, what they have to be, and declaring them."""

from pika.channel import Channel
from pika.exceptions import ChannelClosed

from flowkit.errors import ConfigError
from flowkit.transports.rabbitmq.link import answer, said

ARGUMENTS = {
    "x-queue-type": "quorum",
    "x-overflow": "reject-publish",
    "x-delivery-limit": 2**31 - 1,
}
"""Explicit, whatever the broker's version takes for granted: replicated, refusing rather than dropping, and never
dropping for its number of deliveries. Those rise with every disconnect, for every message that was on its way; what
kills its process is found by its own trace (see `engine/slots.py`)."""
MISSING, MISMATCH = 404, 406


class Queues:
    """The queues of one store: `flowkit.STORE.APP.FLOW`, reached through the default exchange."""

    def __init__(self, store: str) -> None:
        self._store = store

    def name(self, flow: str) -> str:
        """The name of a flow's queue."""
        return f"flowkit.{self._store}.{flow}"

    async def declare(self, channel: Channel, flow: str) -> None:
        """Make the queue of a flow, or see that it is what it must be. Raises ConfigError when it is not."""
        name = self.name(flow)
        try:
            await answer(
                channel, lambda done: channel.queue_declare(name, durable=True, arguments=ARGUMENTS, callback=done)
            )
        except ChannelClosed as error:
            if error.reply_code != MISMATCH:
                raise
            raise ConfigError(
                f"FLOWKIT_BROKER_URL: RabbitMQ has a queue {name} that is not as FlowKit declares it: {said(error)}; "
                "drain it, delete it, and start again"
            ) from None

    async def depth(self, channel: Channel, flow: str) -> int:
        """Messages that wait in the queue of a flow, without those that a worker has in hand. 0 if there is none."""
        name = self.name(flow)
        try:
            frame = await answer(channel, lambda done: channel.queue_declare(name, passive=True, callback=done))
        except ChannelClosed as error:
            if error.reply_code != MISSING:
                raise
            return 0
        return int(frame.method.message_count)
