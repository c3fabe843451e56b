"""RabbitMQ as a transport: one connection to publish and one to consume, so that neither can hold up the other."""

import logging
import ssl
import threading
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager

from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel
from pika.exceptions import AMQPError

from flowkit.errors import BrokerUnavailable, ConfigError
from flowkit.loop import Loop
from flowkit.message import MAX_BODY
from flowkit.ports import CANDIDATE, Clock, Copy, Random, Receipt, Shared
from flowkit.transports.rabbitmq.link import Link, close, open_channel, refused, said
from flowkit.transports.rabbitmq.management import Management
from flowkit.transports.rabbitmq.queues import Queues
from flowkit.transports.rabbitmq.sender import Sender
from flowkit.transports.rabbitmq.servers import servers
from flowkit.transports.rabbitmq.source import RabbitSource
from flowkit.url import mask

_log = logging.getLogger("flowkit.rabbitmq")
LEASE_SECONDS = 30.0
OPEN_SECONDS = 10.0
"""How long a start waits for the broker."""


class RabbitTransport:
    """Implements ports.Transport. Thread-safe. Connects at its first use."""

    lease = LEASE_SECONDS
    limit = MAX_BODY

    def __init__(
        self,
        url: str,
        store: str,
        clock: Clock,
        random: Random,
        management_url: str = "",
        setting: str = "FLOWKIT_BROKER_URL",
    ) -> None:
        """`store`: the id of the database whose flows these are, part of the queues' names. `setting`: where the URL
        comes from. Raises ConfigError."""
        self._url = url
        self._shown = f"{setting} is {mask(url)}"
        (server, *_) = servers(url, setting)
        self._management = Management(management_url, server.virtual_host) if management_url else None
        self._random = random
        self._queues = Queues(store)
        self._clock = clock
        self._changed = threading.Condition()
        self._arrived = False
        self._opening = threading.Lock()
        self._io: Connections | None = None

    @property
    def ready(self) -> bool:
        return self._io is not None and self._io.sender.ready

    def declare(self, flows: Collection[str], shared: Collection[Shared] = ()) -> None:
        self._queues.share(shared)
        io = self._open()
        io.loop.run(io.declare(sorted(flows)))
        try:
            _log.info("%s", self._audit_policies(sorted(flows)))
        except BrokerUnavailable as error:
            _log.warning("the policies of RabbitMQ are not audited now: %s", error)

    def audit(self, flows: Collection[str], shared: Collection[Shared] = ()) -> list[str]:
        """Which queues are there and which are not; those that are, are what they must be. Blocks."""
        self._queues.share(shared)
        io = self._open()
        found = io.loop.run(io.declared(sorted(flows)))
        missing = ", ".join(flow for flow, there in found.items() if not there)
        said = [f"RabbitMQ has {sum(found.values())} of the {len(found)} queues, as they have to be"]
        said += [f"the first worker makes those of {missing}"] if missing else []
        return [*said, self._audit_policies([flow for flow, there in found.items() if there])]

    def _audit_policies(self, flows: Sequence[str]) -> str:
        if self._management is None:
            return "the policies of RabbitMQ are not audited: that needs FLOWKIT_BROKER_MANAGEMENT_URL"
        self._management.audit([self._queues.name(flow) for flow in flows])
        return "no policy of RabbitMQ lets these queues lose messages"

    def source(self, flow: str, worker: str, limit: int) -> RabbitSource:
        io = self._open()
        source = RabbitSource(io.loop, self._queues, flow, limit, self._random, self._tell)
        io.loop.run(io.attach(source))
        return source

    def send(self, copies: Sequence[Copy]) -> list[Receipt]:
        return self._open().sender.send(copies)

    def wait(self, seconds: float, flows: Collection[str]) -> set[str]:
        io = self._open()
        with self._changed:
            self._changed.wait_for(lambda: self._arrived, seconds)
            self._arrived = False
        if not io.consuming.up.is_set():
            raise BrokerUnavailable(f"{self._shown}: {said(io.consuming.error)}")
        return {source.flow for source in io.sources if source.stocked} & set(flows)

    def depths(self, flows: Collection[str]) -> Mapping[str, int]:
        """Messages that wait in the queues of these flows, without those that workers have in hand. Blocks."""
        io = self._open()
        return io.loop.run(io.depths(sorted(flows)))

    def close(self) -> None:
        with self._opening:
            io, self._io = self._io, None
        if io is not None:
            io.loop.run(io.close())
            io.loop.close()
        self._tell()

    def _open(self) -> "Connections":
        with self._opening:
            if self._io is None:
                loop = Loop("flowkit-rabbitmq")
                self._io = loop.run(self._connections(loop))
            return self._io

    async def _connections(self, loop: Loop) -> "Connections":
        return Connections(loop, self._url, self._shown, self._queues, self._clock, self._random)

    def _tell(self) -> None:
        """Wake who waits."""
        if not self._arrived:
            with self._changed:
                self._arrived = True
                self._changed.notify_all()


class Connections:
    """The two connections of a process. Made, and used, on the I/O thread only."""

    def __init__(self, loop: Loop, url: str, shown: str, queues: Queues, clock: Clock, random: Random) -> None:
        self.loop = loop
        self._shown = shown
        self._queues = queues
        self.sources: list[RabbitSource] = []
        self.sender = Sender(loop, queues, clock)
        self.publishing = Link(servers(url), random, self.sender.opened, self.sender.lost)
        self.consuming = Link(servers(url), random, self._consume, self._lost)
        self.sender.link = self.publishing

    async def declare(self, flows: Sequence[str]) -> None:
        """Make the queues of these flows. Raises ConfigError when one is there and is not what it must be, and
        BrokerUnavailable when there is no answer."""
        for flow in flows:
            async with self._ask() as channel:
                await self._queues.declare(channel, flow)

    async def declared(self, flows: Sequence[str]) -> dict[str, bool]:
        """Which of these flows have their queue. Raises as `declare` does."""
        found = {}
        for flow in flows:
            async with self._ask() as channel:
                found[flow] = await self._queues.depth(channel, flow) is not None
                if found[flow]:
                    await self._queues.declare(channel, flow)
        return found

    async def depths(self, flows: Sequence[str]) -> dict[str, int]:
        """Messages in the queues of these flows, and of the candidate. Raises as `declare` does."""
        found = dict.fromkeys(flows, 0)
        for flow in flows:
            for address in (flow, flow + CANDIDATE):
                async with self._ask() as channel:
                    found[flow] += await self._queues.depth(channel, address) or 0
        return found

    async def attach(self, source: RabbitSource) -> None:
        """Consume for a lane, now and after every reconnect."""
        self.sources = [*(one for one in self.sources if not one.closed), source]
        if self.consuming.connection is not None and self.consuming.up.is_set():
            await source.consume(self.consuming.connection).wait()
        else:
            await self.consuming.ready(OPEN_SECONDS)

    async def close(self) -> None:
        await self.consuming.close()
        await self.publishing.close()

    @asynccontextmanager
    async def _ask(self) -> AsyncIterator[Channel]:
        """A channel for questions to the broker, which closes it when the answer is no."""
        link = self.publishing
        channel: Channel | None = None
        try:
            if not await link.ready(OPEN_SECONDS) or link.connection is None:
                raise ConnectionError from link.error
            channel = await open_channel(link.connection, lambda _: None)
            yield channel
        except ConfigError as error:
            raise ConfigError(f"{self._shown}: {error}") from None
        except (AMQPError, OSError) as error:
            cause = error.__cause__ or error
            why = f"{self._shown}, which cannot be used: {said(cause)}"
            if isinstance(cause, ssl.SSLError):
                raise ConfigError(f"{why}; check the host's name and its certificate, and cacertfile=") from None
            if refused(cause):
                raise ConfigError(f"{why}; check user, password, virtual host and permissions") from None
            raise BrokerUnavailable(f"{why}; check host and port, and whether RabbitMQ runs") from None
        finally:
            close(channel)

    async def _consume(self, connection: AsyncioConnection) -> None:
        for source in self.sources:
            source.consume(connection)

    def _lost(self) -> None:
        for source in self.sources:
            source.lost()
