"""Connections to RabbitMQ that reconnect whenever they are lost. Everything here runs on the I/O thread."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from pika import ConnectionParameters
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.utils.connection_workflow import AMQPConnectionWorkflowFailed, AMQPConnectorPhaseErrorBase
from pika.channel import Channel
from pika.exceptions import (
    AMQPConnectionError,
    AMQPError,
    AuthenticationError,
    ChannelClosed,
    ConnectionClosed,
    NoFreeChannels,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)

from flowkit.errors import ConfigError
from flowkit.fork import part_with
from flowkit.ports import Random
from flowkit.transports.rabbitmq.connection import Connection

FIRST_WAIT_SECONDS = 0.25
MOST_WAIT_SECONDS = 4.0
"""Seconds. Full jitter: each wait is a random part of this, so that many clients do not reconnect at the same time."""
REFUSALS = 2
"""Refusals after which waiting seems useless: a broker that starts may refuse once and accept a moment later."""
CLOSE_SECONDS = 2.0
ANSWER_SECONDS = 15.0
"""Seconds that the broker may take to answer anything but a publish."""
_log = logging.getLogger("flowkit.rabbitmq")
# pika logs each lost connection as five errors and a stack. This module logs it once.
logging.getLogger("pika").setLevel(logging.CRITICAL)


class Link:
    """One connection to one of several servers, which reconnects whenever it is lost. Lives on the I/O thread.

    It awaits `opened` with each new connection, and calls `lost` when that has ended.
    """

    def __init__(
        self,
        servers: Sequence[ConnectionParameters],
        random: Random,
        opened: Callable[[AsyncioConnection], Awaitable[None]],
        lost: Callable[[], None],
    ) -> None:
        self._servers = servers
        self._random = random
        self._opened = opened
        self._lost = lost
        self._closing: asyncio.Future[BaseException] | None = None
        self.connection: AsyncioConnection | None = None
        self._ending: set[AsyncioConnection] = set()
        """Connections that are closed here, and perhaps not at the broker."""
        self.up = asyncio.Event()
        """Set while there is a connection."""
        self._settled = asyncio.Event()
        """Set while there is a connection, or after `REFUSALS` refusals, when waiting would not help."""
        self.error: BaseException = ConnectionError("not connected yet")
        """Why there is no connection."""
        part_with(self, Link._sockets)
        self.task = asyncio.get_running_loop().create_task(self._keep())

    def _sockets(self) -> Iterator[int]:
        """A forked child must not keep these: the broker would take a dead worker for alive, and hold its messages."""
        for one in [self.connection, *self._ending]:
            if one is not None and one._transport is not None:  # type: ignore[attr-defined]
                yield one._transport._sock.fileno()  # type: ignore[attr-defined]

    async def ready(self, seconds: float) -> bool:
        """Wait at most `seconds` for a connection, or until the broker has refused it. Returns whether there is one."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), seconds)
        return self.up.is_set()

    def abandon(self, connection: AsyncioConnection | None, why: str) -> None:
        """Give up a connection that does not answer, if it is still the one in use."""
        if connection is self.connection and self._closing is not None and not self._closing.done():
            self._closing.set_result(ConnectionError(why))

    async def close(self) -> None:
        """Close the connection, and do not reconnect."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        end = asyncio.get_running_loop().time() + CLOSE_SECONDS
        if self.connection is not None:
            self._ending.add(self.connection)
        while open := {one for one in self._ending if not one.is_closed}:
            if asyncio.get_running_loop().time() > end:
                _log.warning("RabbitMQ did not answer the closing of a connection; it was cut")
                for one in open:
                    cut(one)
                break
            await asyncio.sleep(0.005)

    async def _keep(self) -> None:
        failures, refusals, told = 0, 0, False
        turn = int(self._random() * len(self._servers))
        while True:
            server = self._servers[turn % len(self._servers)]
            try:
                closing = await self._connect(server)
                assert self.connection is not None
                await self._opened(self.connection)
                if not closing.done():
                    if told:
                        _log.info("connected to RabbitMQ at %s:%d again", server.host, server.port)
                    self.up.set()
                    self._settled.set()
                    failures, refusals, told = 0, 0, False
                self.error = await closing
            except Exception as error:
                # Any error: without this task nothing would be sent or received any more.
                self.error = error
            finally:
                self.up.clear()
                refusals = refusals + 1 if refused(self.error) else 0
                if refusals < REFUSALS:
                    self._settled.clear()
                else:
                    self._settled.set()
                self._lost()
                if self.connection is not None and self.connection.is_open:
                    self._end(self.connection)
            if not told:
                told = True
                known = isinstance(self.error, AMQPError | ConfigError | OSError)
                _log.warning(
                    "no connection to RabbitMQ at %s:%d: %s",
                    server.host,
                    server.port,
                    said(self.error),
                    exc_info=None if known else self.error,
                )
            failures, turn = failures + 1, turn + 1
            await asyncio.sleep(self._random() * min(MOST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(failures, 10)))

    def _end(self, connection: AsyncioConnection) -> None:
        """Close a connection, and cut it if the broker does not answer: a node that is cut off from its cluster still
        sends heartbeats."""
        self._ending = {one for one in self._ending if not one.is_closed} | {connection}
        connection.close()
        asyncio.get_running_loop().call_later(ANSWER_SECONDS, cut, connection)

    async def _connect(self, server: ConnectionParameters) -> asyncio.Future[BaseException]:
        """Connect. Returns a future of the reason for which the connection will end. Raises pika's errors."""
        loop = asyncio.get_running_loop()
        opening: asyncio.Future[object] = loop.create_future()
        self._closing = closing = loop.create_future()

        def failed(_: object, error: BaseException | str) -> None:
            if not opening.done():
                opening.set_exception(innermost(error))

        self.connection = Connection(
            server,
            on_open_callback=resolve(opening),
            on_open_error_callback=failed,
            on_close_callback=resolve(closing),
            custom_ioloop=loop,
        )
        await opening
        return closing


def cut(connection: AsyncioConnection) -> None:
    """End a connection without the broker's answer, if it has not ended."""
    if not connection.is_closed:
        why = ConnectionError("the closing of the connection was not answered")
        connection._terminate_stream(why)  # type: ignore[attr-defined]  # the only way; its heartbeat does the same


async def open_channel(connection: AsyncioConnection, closed: Callable[[BaseException], None]) -> Channel:
    """Return a new channel, and call `closed` with the reason when it ends. Raises pika's errors, or TimeoutError."""
    opening: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    def ended(_: object, error: BaseException) -> None:
        if opening.done():
            closed(error)
        else:
            opening.set_exception(error)

    def opened(channel: Channel) -> None:
        if opening.done():
            channel.close()  # the caller has stopped waiting
        else:
            opening.set_result(channel)

    channel = connection.channel(on_open_callback=opened)
    channel.add_on_close_callback(ended)
    await asyncio.wait_for(opening, ANSWER_SECONDS)
    return channel


def close(channel: Channel | None, why: str = "done") -> None:
    """Close a channel unless it is closing or closed: pika would raise then."""
    if channel is not None and channel.is_open:
        channel.close(0, why)


async def answer(
    channel: Channel, ask: Callable[[Callable[[Any], None]], object], seconds: float = ANSWER_SECONDS
) -> Any:
    """Call `ask` with a callback for the broker's answer, and return that. Raises ChannelClosed or TimeoutError."""
    answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def closed(_: object, error: BaseException) -> None:
        if not answered.done():
            answered.set_exception(error)

    channel.add_on_close_callback(closed)
    ask(resolve(answered))
    return await asyncio.wait_for(answered, seconds)


def resolve(future: "asyncio.Future[Any]") -> Callable[..., None]:
    """Return a callback that makes its last argument the result of a future, unless that has one."""

    def give(*arguments: object) -> None:
        if not future.done():
            future.set_result(arguments[-1])

    return give


def innermost(error: BaseException | str) -> BaseException:
    """Return the reason that pika's errors wrap."""
    if isinstance(error, str):
        return AMQPConnectionError(error)
    if isinstance(error, AMQPConnectionWorkflowFailed) and error.exceptions:
        return innermost(error.exceptions[-1])
    if isinstance(error, AMQPConnectorPhaseErrorBase):
        return innermost(error.exception)
    if isinstance(error, AMQPConnectionError) and error.args and isinstance(error.args[0], BaseException):
        return innermost(error.args[0])
    return error


def refused(error: BaseException) -> bool:
    """Whether the broker refused the login: waiting would not help."""
    if isinstance(error, ConnectionClosed | ChannelClosed):
        return error.reply_code in (403, 530)
    return isinstance(
        error,
        AuthenticationError | ProbableAuthenticationError | ProbableAccessDeniedError | ssl.SSLCertVerificationError,
    )


def said(error: BaseException) -> str:
    """Return one line for an error."""
    if isinstance(error, ConnectionClosed | ChannelClosed):
        return f"{error.reply_text} ({error.reply_code})"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, NoFreeChannels):
        return "RabbitMQ grants this connection no more channels (channel_max); each lane needs one"
    return f"{type(error).__name__}: {error}".split("\n", 1)[0].rstrip(": ")
