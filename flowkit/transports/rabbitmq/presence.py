"""Presence: live workers of a store answer each other, so that workers of a copied database are noticed."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping
from itertools import count

from pika import BasicProperties
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel
from pika.spec import Basic

from flowkit.transports.rabbitmq.link import answer, open_channel, resolve, said
from flowkit.transports.rabbitmq.queues import Queues

LISTEN_SECONDS = 0.5
"""Seconds to wait for answers. A worker answers from its I/O thread, within milliseconds."""
ALONE_SECONDS = 0.05
"""Seconds to wait if no queue received the question: another worker may be starting too."""
WHO, HERE = "who", "here"
"""The types of the question and of the answer."""
_log = logging.getLogger("flowkit.rabbitmq")


class Presence:
    """Answers for one worker, and asks for other workers. Lives on the I/O thread.

    A question goes to a fanout exchange. Each worker has a queue bound to it, exclusive to its connection. Nothing is
    sent between questions.
    """

    def __init__(self, queues: Queues, worker: str, is_known: Callable[[], bool]) -> None:
        """`is_known` returns whether the worker's own database has its recent heartbeat; else it does not answer."""
        self._exchange = queues.name("presence")
        self._queue = queues.name(f"worker.{worker}")
        self._worker = worker
        self._is_known = is_known
        self._where = f"{socket.gethostname()}, process {os.getpid()}".encode()
        self._numbers = count(1)
        self._reply_to = ""
        self._channel: Channel | None = None
        self._found: dict[str, str] = {}
        self._task: asyncio.Task[bool] | None = None

    async def open(self, connection: AsyncioConnection) -> bool:
        """Answer on this connection from now on. Returns whether other workers are there. Raises pika's errors."""
        self._channel = channel = await open_channel(connection, lambda _: None)
        # A new name each time: the broker may not have noticed yet that the previous connection is gone.
        queue = f"{self._queue}.{next(self._numbers)}"
        exchange = self._exchange
        await answer(channel, lambda done: channel.exchange_declare(exchange, "fanout", durable=True, callback=done))
        await answer(channel, lambda done: channel.queue_declare(queue, exclusive=True, callback=done))
        await answer(channel, lambda done: channel.basic_consume(queue, self._came, auto_ack=True, callback=done))
        self._reply_to = queue
        others = await self._is_heard(channel)
        await answer(channel, lambda done: channel.queue_bind(queue, exchange, callback=done))
        return others

    def resume(self, connection: AsyncioConnection) -> None:
        """Schedule `open` on a new connection, and log its errors."""
        self._task = asyncio.get_running_loop().create_task(self.open(connection))
        self._task.add_done_callback(self._resumed)

    async def meet(self, connection: AsyncioConnection) -> Mapping[str, str]:
        """Ask for other workers. Returns worker -> its host and process. Raises pika's errors."""
        others = True
        if self._channel is None or not self._channel.is_open:
            others = await self.open(connection)
        self._found = {}
        self._ask(self._channel)
        await asyncio.sleep(LISTEN_SECONDS if others else ALONE_SECONDS)
        return self._found

    def _resumed(self, task: "asyncio.Task[bool]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("this worker does not answer workers that start: %s", said(error))

    async def _is_heard(self, channel: Channel) -> bool:
        """Whether a question reaches any worker: else the broker returns it before it confirms it."""
        returned = []
        confirmed: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        channel.add_on_return_callback(lambda *_: returned.append(True))
        await answer(channel, lambda done: channel.confirm_delivery(resolve(confirmed), done))
        self._ask(channel)
        await answer(channel, confirmed.add_done_callback)
        return not returned

    def _ask(self, channel: Channel | None) -> None:
        asked = BasicProperties(type=WHO, app_id=self._worker, reply_to=self._reply_to)
        if channel is not None:
            channel.basic_publish(self._exchange, "", b"", asked, mandatory=True)

    def _came(self, channel: Channel, _: Basic.Deliver, found: BasicProperties, body: bytes) -> None:
        other = str(found.app_id)
        if other == self._worker:
            return
        if found.type == HERE:
            self._found[other] = body.decode("utf-8", "replace")
        elif found.type == WHO and found.reply_to and self._is_known() and channel.is_open:
            here = BasicProperties(type=HERE, app_id=self._worker)
            channel.basic_publish("", str(found.reply_to), self._where, here)
