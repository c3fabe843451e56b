"""The app: the registry of flows, and what other programs publish through."""

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, overload

from flowkit import duration
from flowkit.errors import DefinitionError, StoreConflict, StoreUnavailable, Undecodable
from flowkit.message import MAX_BODY, MAX_NAME, NAMELESS, check_name
from flowkit.model.channel import Channel, T
from flowkit.model.channels import Channels
from flowkit.model.flow import Flow, Isolation, SourceFrom
from flowkit.model.identity import IdFrom
from flowkit.model.outbox import Context, Outgoing, compose
from flowkit.model.retry import RetryPolicy
from flowkit.moves import check_moves
from flowkit.ports import CANDIDATE, EXCHANGE, Shared, Store
from flowkit.publisher import Publisher, stage
from flowkit.services import Services, connect
from flowkit.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])
BULK = 500


class App:
    """A named set of flows.

    `metadata` is the SQLAlchemy metadata of the app's own tables: on SQLite they are created, elsewhere migrations
    are the user's. `retention` is how long the inbox remembers an applied message; it must exceed all retries, the
    longest delay (`max_delay`) and the time a dead letter is held (`dead_letter_hold`). `max_body` is in bytes.
    """

    def __init__(
        self,
        name: str,
        *,
        metadata: Any = None,
        retention: duration.Duration = "14d",
        dead_letter_hold: duration.Duration = "7d",
        max_delay: duration.Duration = "3d",
        max_body: int = MAX_BODY,
    ) -> None:
        if not name.replace("-", "").replace("_", "").isalnum() or len(name) > MAX_NAME:
            raise DefinitionError(f"App({name!r}): a name has only letters, digits, - and _, at most {MAX_NAME}")
        if name == NAMELESS:
            raise DefinitionError(f"App({name!r}): other programs' messages have that source; take another name")
        self.name = name
        self.metadata = metadata
        self.retention = duration.seconds(retention, "App(retention=)")
        self.dead_letter_hold = duration.seconds(dead_letter_hold, "App(dead_letter_hold=)")
        self.max_delay = duration.seconds(max_delay, "App(max_delay=)")
        self.max_body = max_body
        self.channels = Channels()
        self.flows: dict[str, Flow] = {}
        self.provided: dict[type, Callable[[], Any]] = {}
        self._services: Services | None = None
        self._publisher: Publisher | None = None
        self._opening = threading.Lock()

    # ------------------------------------------------------------ definitions

    @overload
    def channel(self, name: str, type: type[T], *, optional: bool = False, shared: bool = False) -> Channel[T]: ...
    @overload
    def channel(self, name: str, type: Any = Any, *, optional: bool = False, shared: bool = False) -> Channel[Any]: ...
    def channel(self, name: str, type: Any = Any, *, optional: bool = False, shared: bool = False) -> Channel[Any]:
        """Declare a channel that carries `type`. With `optional`, its messages may have no subscriber. With `shared`,
        other programs publish and receive there too: at the broker it has an exchange of its name.

        Raises DefinitionError when it was declared otherwise before.
        """
        return self.channels.declare(Channel(name, type, optional, shared))

    def flow(
        self,
        source: Channel[Any] | str,
        *,
        to: Channel[Any] | str | Sequence[Channel[Any] | str] = (),
        name: str | None = None,
        retry: RetryPolicy | None = None,
        deadline: duration.Duration = 60.0,
        concurrency: int | None = None,
        batch: int = 100,
        isolate: Isolation = "batch",
        id_from: IdFrom | None = None,
        source_from: SourceFrom | None = None,
        settings: bool = False,
        priority: int = 0,
    ) -> Callable[[F], F]:
        """Make a function the handler of a flow. The function is returned unchanged and can be called as it is.

        `to` names the channels it sends to; `deadline` bounds one run of the handler; `concurrency` is how many lanes
        of a worker run it, by default 2 on PostgreSQL and 1 on SQLite; `batch` is the most messages that share a
        transaction; `isolate="savepoint"` gives each message a savepoint, `"single"` a transaction of its own;
        `id_from` finds the id of what other programs send, by a shared channel or as requests: a field of the body, a
        function of it, or `web.header(name)`; `source_from="user_id"` makes RabbitMQ's user the source of messages of
        other programs, and refuses those that do not name it; `settings=True` says that the handler changes settings of
        its transaction (SET, a role) by functions, which FlowKit does not see: each message then has a transaction of
        its own, and settings are put back; flows of less `priority` rest first while the service is reduced. Raises
        DefinitionError.
        """
        if not isinstance(source, Channel | str):
            before = getattr(source, "__name__", source)
            raise DefinitionError(f"@app.flow is written without a channel before {before}; write @app.flow(channel)")
        channels = [to] if isinstance(to, Channel | str) else to

        def register(handler: F) -> F:
            short = name or handler.__name__
            full = f"{self.name}.{short}"
            try:
                check_name("a flow's name", full)
            except Undecodable as error:
                raise DefinitionError(str(error)) from None
            if CANDIDATE in full:
                raise DefinitionError(f"flow {full}: {CANDIDATE} is the address of a version; take another name")
            if full in self.flows:
                raise DefinitionError(
                    f"flow {full} is defined twice; rename one function or write @app.flow(…, name=…)"
                )
            self.flows[full] = Flow(
                name=full,
                handler=handler,
                source=self.channels.named(source),
                to=tuple(self.channels.named(one) for one in channels),
                retry=retry or RetryPolicy(),
                deadline=duration.seconds(deadline, f"flow {full}, deadline"),
                concurrency=concurrency,
                batch=batch,
                isolate=isolate,
                id_from=id_from,
                source_from=source_from,
                settings=settings,
                priority=priority,
            )
            return handler

        return register

    def provide(self, type: type[T], factory: Callable[[], Any]) -> None:
        """Inject what `factory` makes into parameters of this type. Made once per worker; a context manager is
        entered when the worker starts and left when it ends."""
        if type in self.provided:
            raise DefinitionError(f"{type.__name__} is provided twice; one factory makes it for the whole app")
        self.provided[type] = factory

    def check(self, injectable: Iterable[type] = (), subscribed: Mapping[str, Sequence[str]] | None = None) -> None:
        """Find what is wrong in the definitions: each error says which flow, what, and what to write instead.

        `injectable` are the types that the store gives; `subscribed` are the subscriptions that others hold.
        """
        if not self.flows:
            raise DefinitionError(f"app {self.name} has no flows; decorate a function with @app.flow(channel)")
        sources = {flow.source.name for flow in self.flows.values()}
        for flow in self.flows.values():
            flow.check(injectable, self.provided)
            self._check_name(flow, subscribed or {})
            for channel in flow.to:
                reached = channel.shared or channel.name in sources or (subscribed or {}).get(channel.name)
                if not channel.optional and not reached:
                    raise flow.wrong(
                        f"it sends to channel {channel.name}, which has no subscriber; write a flow with it as source, "
                        f"or app.channel({channel.name!r}, …, optional=True)"
                    )
            needed = flow.retry.longest + self.max_delay + self.dead_letter_hold
            if self.retention <= needed:
                raise flow.wrong(
                    f"App(retention={duration.text(self.retention)!r}) is not longer than its retries "
                    f"({duration.text(flow.retry.longest)}), the longest delay ({duration.text(self.max_delay)}) and "
                    f"the hold of dead letters ({duration.text(self.dead_letter_hold)}) together: a late message could "
                    f"take effect twice; write more than {duration.text(needed)}"
                )

    def _check_name(self, flow: Flow, subscribed: Mapping[str, Sequence[str]]) -> None:
        """Find a source that is a declared channel's name with a mistake in it. Raises DefinitionError."""
        received = {one.source.name for one in self.flows.values()}
        received |= {name for name, flows in subscribed.items() if not self.flows.keys() >= set(flows)}
        if meant := self.channels.meant(flow.source.name, received):
            raise flow.wrong(
                f"it receives from channel {flow.source.name}, which only this text names, and no flow receives from "
                f"the declared channel {meant}; write that name, or declare the other one too: "
                f"app.channel({flow.source.name!r}, …)"
            )

    def check_moves(self, store: Store) -> None:
        """Find flows whose subscription is to another channel, and cannot be changed now: a flow has one channel, and
        what comes to the other one would go nowhere. Raises DefinitionError. Blocks."""
        check_moves(store, self.name, self.flows.values())

    def select(self, names: Iterable[str]) -> list[Flow]:
        """The flows of these short or full names. Raises DefinitionError for an unknown one."""
        flows = []
        for name in names:
            flow = self.flows.get(name) or self.flows.get(f"{self.name}.{name}")
            if flow is None:
                raise DefinitionError(f"app {self.name} has no flow {name}; its flows are {', '.join(self.flows)}")
            flows.append(flow)
        return flows

    def shared(self, subscriptions: Mapping[str, str]) -> list[Shared]:
        """The shared channels of this app's store, by the subscriptions there, and the app's flows at each."""
        channels = [channel for flow, channel in subscriptions.items() if flow.startswith(EXCHANGE)]
        return [
            Shared(
                name,
                [flow.name for flow in self.flows.values() if flow.source.name == name],
                name in self.channels.optional,
            )
            for name in channels
        ]

    # ------------------------------------------------------------ publishing

    def connect(self, services: Services) -> None:
        """Use these services: create the app's tables where the store does so, and record the subscriptions.

        Raises DefinitionError where a flow moves to another channel too early.
        """
        shared = {EXCHANGE + name: name for name in self.channels.shared}
        try:
            services.store.schema.create_tables(self.metadata)
            self.check_moves(services.store)
            services.store.subscribers.add({flow.name: flow.source.name for flow in self.flows.values()} | shared)
            if not self.flows:
                services.store.subscribers.announce(self.name)  # no subscription names it
        except StoreConflict as conflict:
            raise StoreUnavailable(f"{conflict}; another transaction held the database for too long") from conflict
        self._services = services
        self._publisher = Publisher(services.store, self.context(services))

    def context(self, services: Services) -> Context:
        """The parts needed to make messages."""
        limit = min(self.max_body, services.transport.limit)
        return Context(services.clock, services.ids, self.max_delay, limit, services.telemetry)

    def services(self) -> Services:
        """The services of this process, connected on first use by the settings of the environment."""
        with self._opening:
            if self._services is None:
                self.connect(connect(Settings.read()))
        assert self._services is not None
        return self._services

    def publish(
        self,
        channel: Channel[T] | str,
        value: T | Any,
        *,
        key: str | None = None,
        delay: duration.Duration = 0.0,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Publish one message from outside the flows. Returns its id when it is committed; blocks until then.

        The same `id` is accepted once, and its body has to be the same each time, byte for byte: a `set` has no stable
        order. Raises Reused for another one, Unrouted, TooLarge, StoreUnavailable, or OutcomeUnknown(id).
        """
        outgoing = self._compose(channel, value, key, delay, id, headers)
        self._publish([outgoing])
        return outgoing.message.id

    async def publish_async(self, channel: Channel[T] | str, value: T | Any, **options: Any) -> str:
        """`publish` for async code: the event loop goes on while it commits. Takes the same options."""
        return await asyncio.to_thread(lambda: self.publish(channel, value, **options))

    def publish_many(
        self, channel: Channel[T] | str, values: Iterable[T | Any], ids: Iterable[str] | None = None
    ) -> int:
        """Publish many messages, 500 to a transaction. Returns how many; blocks until all are committed.

        With `ids`, one for each value, it can be called again after any error: each id is accepted once. Raises as
        `publish` does; OutcomeUnknown carries the ids of the transaction in question, and those before are accepted.
        Reused names one id, and nothing of its transaction is accepted.
        """
        count, bulk = 0, []
        named = zip(values, ids, strict=True) if ids is not None else ((value, None) for value in values)
        for value, id in named:
            bulk.append(self._compose(channel, value, id=id))
            if len(bulk) == BULK:
                self._publish(bulk)
                count, bulk = count + BULK, []
        if bulk:
            self._publish(bulk)
        return count + len(bulk)

    def outbox(self, session: Any) -> "SessionOutbox":
        """Publish inside your own transaction: what it sends is accepted if and when `session` commits.

        Raises ConfigError when the session writes to another database than the store's.
        """
        return SessionOutbox(self, session)

    def close(self) -> None:
        """Close the services of this process. Nothing to do if none were opened."""
        services, self._services, self._publisher = self._services, None, None
        if services is not None:
            services.close()

    def _publish(self, messages: list[Outgoing]) -> None:
        self.services()
        assert self._publisher is not None
        self._publisher.publish(messages, self.channels.optional)

    def _compose(
        self,
        channel: Channel[Any] | str,
        value: Any,
        key: str | None = None,
        delay: duration.Duration = 0.0,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Outgoing:
        target = channel if isinstance(channel, Channel) else self.channels.get(channel)
        if target is None:
            raise DefinitionError(
                f"app {self.name} has no channel {channel}; its channels are {', '.join(self.channels)}"
            )
        return compose(
            self.context(self.services()), target(value, key=key, delay=delay, headers=headers), self.name, id
        )


class SessionOutbox:
    """Sends messages that are accepted with the caller's own transaction, or not at all."""

    def __init__(self, app: App, session: Any) -> None:
        self._app = app
        self._session = session
        self._store = app.services().store
        self._lane = f"session-{app.services().ids()}"
        self._store.join(session, self._lane)  # refuses a session that cannot be joined

    def send(
        self,
        channel: Channel[Any] | str,
        value: Any,
        *,
        key: str | None = None,
        delay: duration.Duration = 0.0,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Stage one message in the session's transaction. Returns its id. Blocks for the statements only.

        The same `id` is accepted once. Raises Reused for another body under it; the transaction can go on then.
        """
        outgoing = self._app._compose(channel, value, key, delay, id, headers)
        # Each time: after a commit the session goes on in another transaction, on another connection perhaps.
        unit = self._store.join(self._session, self._lane)
        stage(unit, [outgoing], self._app.context(self._app.services()), self._app.channels.optional)
        unit.flush()
        return outgoing.message.id
