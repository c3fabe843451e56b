"""Watches the policies of the broker: an operator may set one at any time, and RabbitMQ reports it late."""

import asyncio
import logging
from collections.abc import Callable, Collection

from flowkit.errors import BrokerUnavailable, ConfigError
from flowkit.transports.rabbitmq.management import Management

LOOK_SECONDS = 30.0
"""Seconds between two checks of a worker. RabbitMQ reports a change within ten seconds."""
_log = logging.getLogger("flowkit.rabbitmq")


class Policies:
    """Logs which policy lets a queue of this process lose messages. Lives on the I/O thread."""

    def __init__(self, management: Management, queues: Callable[[], Collection[str]]) -> None:
        """`queues` returns the names of the queues that this process receives from."""
        self._management = management
        self._queues = queues
        self._told = ""
        self.task = asyncio.get_running_loop().create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            said = ""
            try:
                await asyncio.to_thread(self._management.audit, sorted(self._queues()), 0.0)
            except BrokerUnavailable as error:
                said = f"the policies of RabbitMQ are not audited now: {error}"
            except Exception as error:  # any error: without this task nothing checks again
                said = str(error) if isinstance(error, ConfigError) else f"the policies of RabbitMQ: {error!r}"
            if said and said != self._told:
                _log.error("%s", said)
            self._told = said
