"""RabbitMQ as a transport: one connection to publish and one to consume, so that neither can delay the other."""

import logging
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager

from pika import PlainCredentials
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel
from pika.exceptions import AMQPError

from flowkit import duration
from flowkit.errors import BrokerUnavailable, ConfigError
from flowkit.loop import Loop
from flowkit.message import MAX_BODY
from flowkit.ports import CANDIDATE, Clock, Copy, Delivery, Random, Receipt, Ring, Shared
from flowkit.transports.rabbitmq.consumer import RabbitConsumer, received
from flowkit.transports.rabbitmq.exchanges import Exchanges
from flowkit.transports.rabbitmq.link import Link, close, open_channel, refused, said
from flowkit.transports.rabbitmq.management import Management
from flowkit.transports.rabbitmq.policies import Policies
from flowkit.transports.rabbitmq.presence import Presence
from flowkit.transports.rabbitmq.queues import Queues
from flowkit.transports.rabbitmq.sender import Sender
from flowkit.transports.rabbitmq.servers import servers
from flowkit.transports.rabbitmq.signature import Signatures
from flowkit.url import exposed, is_loopback, mask

_log = logging.getLogger("flowkit.rabbitmq")
LEASE_SECONDS = 30.0
CONSUMER_TIMEOUT_SECONDS = 1800.0
"""RabbitMQ's default. Neither AMQP nor the management API reports the current setting."""
TAKEN = 500
"""Messages that one step of emptying a queue receives."""
UNSIGNED = (
    "unsigned messages in queues of RabbitMQ are taken for the store's own, because an older version may have sent "
    "them; once those are finished, run: flowkit keys require"
)
"""A warning: meanwhile, a program that may publish to the default exchange can forge a message."""
OPEN_SECONDS = 10.0
"""Seconds that a start waits for the broker."""


class RabbitTransport:
    """Implements ports.Transport. Thread-safe. Connects at its first use."""

    lease = LEASE_SECONDS
    hops = True
    limit = MAX_BODY

    def __init__(
        self,
        url: str,
        store: str,
        clock: Clock,
        random: Random,
        management_url: str = "",
        setting: str = "FLOWKIT_BROKER_URL",
        *,
        keys: Callable[[], Ring],
    ) -> None:
        """`store` is the id of the flows' store, a part of the queues' names. `setting` names the setting with the URL.
        `keys` reads the store's signing keys, and may block. Raises ConfigError."""
        self._url = url
        self._shown = f"{setting} is {mask(url)}"
        (server, *_) = found = servers(url, setting)
        clear = [f"{one.host}:{one.port}" for one in found if not (one.ssl_options or is_loopback(one.host))]
        self._doubts = exposed(setting, url, clear, "write amqps://")
        """Warnings about the connections to the broker."""
        self._user = str(server.credentials.username) if isinstance(server.credentials, PlainCredentials) else ""
        self._management = Management(management_url, server.virtual_host) if management_url else None
        self._random = random
        self._queues = Queues(store)
        self._signatures = Signatures(keys, clock)
        self._clock = clock
        self._changed = threading.Condition()
        self._arrived = False
        self._opening = threading.Lock()
        self._io: Connections | None = None

    @property
    def ready(self) -> bool:
        return self._io is not None and self._io.sender.ready

    @property
    def hindered(self) -> Mapping[str, str]:
        return self._io.hindered if self._io is not None else {}

    def declare(self, flows: Collection[str], shared: Collection[Shared] = ()) -> None:
        self._queues.share(shared)
        io = self._open()
        io.loop.run(io.declare(sorted(flows)))
        try:
            _log.info("%s", self._audit_policies(sorted(flows)))
        except BrokerUnavailable as error:
            _log.warning("the policies of RabbitMQ are not audited now: %s", error)

    def audit(self, flows: Collection[str], shared: Collection[Shared] = ()) -> list[str]:
        """Return which queues and exchanges exist, and which do not. Raises ConfigError if one has wrong arguments.
        Blocks."""
        self._queues.share(shared)
        io = self._open()
        found = io.loop.run(io.declared(sorted(flows)))
        exchanges = io.loop.run(io.declared_exchanges(sorted(one.channel for one in shared)))
        said = [
            *_counted("queues", "those of", found),
            *(_counted("exchanges of shared channels", "the exchanges", exchanges) if exchanges else []),
            *self._audit_bindings([flow for flow, there in found.items() if there]),
        ]
        return [*said, self._audit_policies([flow for flow, there in found.items() if there]), *self._audit_rights()]

    def _audit_rights(self) -> list[str]:
        """Return a sentence for each user of the broker with excessive rights."""
        if self._management is None:
            return ["the rights of RabbitMQ's users are not audited: that needs FLOWKIT_BROKER_MANAGEMENT_URL"]
        return self._management.rights(self._user)

    def _audit_bindings(self, flows: Sequence[str]) -> list[str]:
        """Return a sentence for each of these flows whose queue is not bound to its shared channel."""
        bound = [(self._queues.name(flow), exchange) for flow in flows if (exchange := self._queues.exchange(flow))]
        if bound and self._management is None:
            return ["the bindings of queues to exchanges are not audited: that needs FLOWKIT_BROKER_MANAGEMENT_URL"]
        return [
            f"queue {queue} is not bound to the exchange {exchange}; a worker binds it as it starts, or within 30 s"
            for queue, exchange in bound
            if self._management is not None and not self._management.is_bound(queue, exchange)
        ]

    def _audit_policies(self, flows: Sequence[str]) -> str:
        if self._management is None:
            return "the policies of RabbitMQ are not audited: that needs FLOWKIT_BROKER_MANAGEMENT_URL"
        self._management.audit([self._queues.name(flow) for flow in flows])
        return "no policy of RabbitMQ lets these queues lose messages"

    def doubts(self, deadlines: Mapping[str, float]) -> list[str]:
        reached = [*self._doubts, *(self._management.doubts if self._management else ())]
        if self._signatures.lenient:
            reached.append(UNSIGNED)
        return reached + [
            f"flow {flow} may take {duration.text(seconds)} (deadline=), and RabbitMQ delivers a message again after "
            f"its consumer_timeout, {duration.text(CONSUMER_TIMEOUT_SECONDS)} unless its configuration says otherwise: "
            "the handler would then run several times at once; set consumer_timeout to more than the deadline"
            for flow, seconds in deadlines.items()
            if seconds >= CONSUMER_TIMEOUT_SECONDS
        ]

    def others(self, worker: str, is_known: Callable[[], bool]) -> Mapping[str, str]:
        io = self._open()
        return io.loop.run(io.others(worker, is_known))

    def consumer(self, flow: str, worker: str, limit: int) -> RabbitConsumer:
        io = self._open()
        consumer = RabbitConsumer(
            io.loop, self._queues, self._signatures, flow, limit, self._random, self._tell, io.judge
        )
        io.loop.run(io.attach(consumer))
        return consumer

    def send(self, copies: Sequence[Copy]) -> list[Receipt]:
        return self._open().sender.send(copies)

    def wait(self, seconds: float, flows: Collection[str]) -> set[str]:
        io = self._open()
        with self._changed:
            self._changed.wait_for(lambda: self._arrived, seconds)
            self._arrived = False
        if not io.consuming.up.is_set():
            raise BrokerUnavailable(f"{self._shown}: {said(io.consuming.error)}")
        return {consumer.flow for consumer in io.consumers if consumer.stocked} & set(flows)

    def depths(self, flows: Collection[str]) -> Mapping[str, int]:
        """Flow -> number of messages in its queues, without those in flight. Blocks."""
        io = self._open()
        return io.loop.run(io.depths(sorted(flows)))

    def empty(self, flow: str, keep: Callable[[Sequence[Delivery]], None]) -> None:
        for address in (flow, flow + CANDIDATE):
            while self._take(address, keep):
                pass

    def _take(self, flow: str, keep: Callable[[Sequence[Delivery]], None]) -> bool:
        """Pass some messages of a queue to `keep`; delete the queue if it is empty. Returns whether there were any."""
        io = self._open()
        with io.loop.hold(io.ask()) as channel:
            try:
                taken = io.loop.run(self._queues.take(channel, flow, TAKEN))
                if taken:
                    # Only the app knows whether its channel is shared. A message from an exchange shows that it is.
                    came = [
                        received(self._queues, self._signatures, flow, method, found, body, 0, bool(method.exchange))
                        for method, found, body in taken
                    ]
                    keep([one for one in came if one is not None])
                    io.loop.call(channel.basic_ack, 0, True)  # all of them
                elif taken is not None:
                    io.loop.run(self._queues.delete(channel, flow))
                return bool(taken)
            except (AMQPError, OSError) as error:
                raise io.refusal(error) from None

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
                self._signatures.look()
                loop = Loop("flowkit-rabbitmq")
                self._io = loop.run(self._connections(loop))
            return self._io

    async def _connections(self, loop: Loop) -> "Connections":
        return Connections(
            loop,
            self._url,
            self._shown,
            self._queues,
            self._signatures,
            self._clock,
            self._random,
            self._management,
        )

    def _tell(self) -> None:
        """Wake the thread in `wait`."""
        if not self._arrived:
            with self._changed:
                self._arrived = True
                self._changed.notify_all()


def _counted(what: str, which: str, found: Mapping[str, bool]) -> list[str]:
    """Return how many of these exist, and which do not."""
    missing = ", ".join(name for name, there in found.items() if not there)
    said = [f"RabbitMQ has {sum(found.values())} of the {len(found)} {what}, declared as FlowKit needs them"]
    return [*said, f"the first worker creates {which} {missing}"] if missing else said


class Connections:
    """The two connections of a process. Created and used on the I/O thread only."""

    def __init__(
        self,
        loop: Loop,
        url: str,
        shown: str,
        queues: Queues,
        signatures: Signatures,
        clock: Clock,
        random: Random,
        management: Management | None,
    ) -> None:
        self.loop = loop
        self._shown = shown
        self._queues = queues
        self.consumers: list[RabbitConsumer] = []
        self.hindered: Mapping[str, str] = {}
        """Flow without a lane that can consume -> why. The mapping is replaced, never changed."""
        self.presence: Presence | None = None
        self.exchanges = Exchanges(queues, management, self.ask, self._consumed)
        self._policies = Policies(management, self._consumed_queues) if management is not None else None
        self.sender = Sender(loop, queues, signatures, clock, self.exchanges.came_back)
        self.publishing = Link(servers(url), random, self.sender.opened, self.sender.lost)
        self.consuming = Link(servers(url), random, self._consume, self._lost)
        self.sender.link = self.publishing

    async def declare(self, flows: Sequence[str]) -> None:
        """Create the queues of these flows. Raises ConfigError if one exists with other arguments, BrokerUnavailable if
        the broker does not answer."""
        for flow in flows:
            async with self.ask() as channel:
                await self._queues.declare(channel, flow)

    async def declared(self, flows: Sequence[str]) -> dict[str, bool]:
        """Return flow -> whether its queue exists. Raises like `declare`."""
        found = {}
        for flow in flows:
            async with self.ask() as channel:
                found[flow] = await self._queues.depth(channel, flow) is not None
                if found[flow]:
                    await self._queues.declare_queue(channel, flow)
        return found

    async def declared_exchanges(self, names: Sequence[str]) -> dict[str, bool]:
        """Return exchange -> whether it exists. Raises like `declare`."""
        found = {}
        for name in names:
            async with self.ask() as channel:
                found[name] = await self._queues.has_exchange(channel, name)
                if found[name]:
                    await self._queues.declare_exchange(channel, name)
        return found

    async def depths(self, flows: Sequence[str]) -> dict[str, int]:
        """Return flow -> number of messages in its queue and in the candidate's. Raises like `declare`."""
        found = dict.fromkeys(flows, 0)
        for flow in flows:
            for address in (flow, flow + CANDIDATE):
                async with self.ask() as channel:
                    found[flow] += await self._queues.depth(channel, address) or 0
        return found

    async def attach(self, consumer: RabbitConsumer) -> None:
        """Let the consumer of a lane consume, now and after every reconnect."""
        self.consumers = [*(one for one in self.consumers if not one.closed), consumer]
        self.judge()
        if self.consuming.connection is not None and self.consuming.up.is_set():
            await consumer.consume(self.consuming.connection).wait()
        else:
            await self.consuming.ready(OPEN_SECONDS)

    async def others(self, worker: str, is_known: Callable[[], bool]) -> Mapping[str, str]:
        """Ask for other workers, and answer for this one from now on. Raises like `declare`."""
        if self.presence is None:
            self.presence = Presence(self._queues, worker, is_known)
        link = self.consuming
        try:
            if not await link.ready(OPEN_SECONDS) or link.connection is None:
                raise ConnectionError from link.error
            return await self.presence.meet(link.connection)
        except (AMQPError, OSError) as error:
            raise self.refusal(error) from None

    def judge(self) -> None:
        """Update `hindered`. A flow with one consuming lane is not hindered."""
        open = [one for one in self.consumers if not one.closed]
        consumed = {one.flow for one in open if not one.hindered}
        self.hindered = {one.flow: one.hindered for one in open if one.flow not in consumed}

    async def close(self) -> None:
        self.exchanges.task.cancel()
        if self._policies is not None:
            self._policies.task.cancel()
        await self.consuming.close()
        await self.publishing.close()

    @asynccontextmanager
    async def ask(self) -> AsyncIterator[Channel]:
        """Open a channel for questions to the broker, which closes it when it refuses. Raises ConfigError or
        BrokerUnavailable."""
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
            raise self.refusal(error) from None
        finally:
            close(channel)

    def refusal(self, error: BaseException) -> ConfigError | BrokerUnavailable:
        """Return the error for a broker that does not answer, or refuses."""
        cause = error.__cause__ or error
        why = f"{self._shown}, which cannot be used: {said(cause)}"
        if isinstance(cause, ssl.SSLError):
            return ConfigError(f"{why}; check the host's name and its certificate, and cacertfile=")
        if refused(cause):
            return ConfigError(f"{why}; check user, password, virtual host and permissions")
        return BrokerUnavailable(f"{why}; check host and port, and whether RabbitMQ runs")

    async def _consume(self, connection: AsyncioConnection) -> None:
        if self.presence is not None:
            self.presence.resume(connection)
        for consumer in self.consumers:
            consumer.consume(connection)

    def _consumed(self) -> list[str]:
        """The flows that lanes of this process receive for."""
        return sorted({consumer.flow for consumer in self.consumers if not consumer.closed})

    def _consumed_queues(self) -> list[str]:
        return [self._queues.name(flow) for flow in self._consumed()]

    def _lost(self) -> None:
        for consumer in self.consumers:
            consumer.lost()
