"""Watches the exchanges of shared channels: other programs may remove one, or unbind a queue from it."""

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
"""Seconds between two checks of the exchanges. A message that an exchange returns starts a check at once."""
_log = logging.getLogger("flowkit.rabbitmq")


class Exchanges:
    """Restores removed exchanges and bindings, and logs that. Lives on the I/O thread.

    AMQP tells whether an exchange exists. Only a returned message and the management API tell whether a queue is bound
    to it. Without them, a lost binding is restored without a log line.
    """

    def __init__(
        self,
        queues: Queues,
        management: Management | None,
        ask: Callable[[], AbstractAsyncContextManager[Channel]],
        flows: Callable[[], Collection[str]],
    ) -> None:
        """`ask` opens a channel for questions; `flows` returns the flows that this process receives for."""
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
        """Note that an exchange had no queue for a message, and check it soon."""
        self._unrouted.add(exchange)
        self._returned.set()

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):  # check even if nothing came back
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
                pass  # the link logs this itself; a new connection binds again
            except Exception as error:
                # Any error: without this task nothing would restore bindings.
                if str(error) != self._told:
                    self._told = str(error)
                    known = isinstance(error, ConfigError)
                    _log.warning("the shared channels cannot be checked: %s", told(error), exc_info=not known)

    async def _look(self, flow: str, exchange: str, unrouted: bool) -> None:
        """Restore the exchange of a flow and its binding, and log which of them was missing."""
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
            _log.warning(
                "flow %s: %s; it is restored, but the flow did not receive what others sent meanwhile", flow, gone
            )
