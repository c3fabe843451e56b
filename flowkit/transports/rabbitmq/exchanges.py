"""The exchanges of shared channels, watched: other programs may remove one, or unbind a queue from it."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager

from pika.channel import Channel

from flowkit.disclosure import told
from flowkit.errors import BrokerUnavailable, ConfigError
from flowkit.transports.rabbitmq.management import Management
from flowkit.transports.rabbitmq.queues import Queues

LOOK_SECONDS = 30.0
"""How often it is seen that the exchanges are there. A message that comes back from one asks at once."""
_log = logging.getLogger("flowkit.rabbitmq")


class Exchanges:
    """Declares and binds again what was removed, and says so. Lives on the I/O thread.

    AMQP tells whether an exchange is there. Whether a queue is bound to it is told by a message that comes back, and by
    the management API. Without these a lost binding is made again unseen.
    """

    def __init__(
        self,
        queues: Queues,
        management: Management | None,
        ask: Callable[[], AbstractAsyncContextManager[Channel]],
        flows: Callable[[], Collection[str]],
    ) -> None:
        """`ask` gives a channel for questions; `flows` names those that this process receives for."""
        self._queues = queues
        self._management = management
        self._ask = ask
        self._flows = flows
        self._unrouted: set[str] = set()
        """Exchanges that had no queue for a message."""
        self._returned = asyncio.Event()
        self._told = ""
        self.task = asyncio.get_running_loop().create_task(self._keep())

    def came_back(self, exchange: str) -> None:
        """An exchange had no queue for a message."""
        self._unrouted.add(exchange)
        self._returned.set()

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):  # where nothing came back: a look all the same
                await asyncio.wait_for(self._returned.wait(), LOOK_SECONDS)
            self._returned.clear()
            unrouted, self._unrouted = self._unrouted, set()
            try:
                for flow in self._flows():
                    exchange = self._queues.exchange(flow)
                    if exchange:
                        await self._look(flow, exchange, exchange in unrouted)
                self._told = ""
            except BrokerUnavailable:
                pass  # the connection says so itself, and binds again when it is back
            except Exception as error:
                # Whatever it was: without this task nothing would be bound again.
                if str(error) != self._told:
                    self._told = str(error)
                    known = isinstance(error, ConfigError)
                    _log.warning("the shared channels cannot be looked after: %s", told(error), exc_info=not known)

    async def _look(self, flow: str, exchange: str, unrouted: bool) -> None:
        """Make the exchange of a flow and its binding again, and say which of them was gone."""
        queue = self._queues.name(flow)
        bound = not unrouted
        if bound and self._management is not None:
            bound = await asyncio.to_thread(self._management.is_bound, queue, exchange)
        async with self._ask() as channel:
            there = await self._queues.bind_again(channel, flow)
        if not there:
            bound = False
            async with self._ask() as channel:
                await self._queues.bind(channel, flow)
        if not bound:
            gone = f"its queue was not bound to the exchange {exchange} any more"
            if not there:
                gone = f"the exchange {exchange} of its shared channel was removed"
            _log.warning("flow %s: %s; it is restored, and what others sent meanwhile did not come here", flow, gone)
