"""The harness: it runs an app's flows in one thread, on a virtual clock, in memory or on a real database."""

import random
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from sqlalchemy.orm import Session

from flowkit import duration
from flowkit.app import App
from flowkit.engine.item import Item
from flowkit.engine.worker import Worker
from flowkit.message import Message, new_id
from flowkit.model.channel import Channel, T
from flowkit.operations import pending
from flowkit.ports import Done, Outcome
from flowkit.services import Services, open_store
from flowkit.settings import Settings
from flowkit.store.dead_letters import DeadLetter
from flowkit.store.ledger import Balance
from flowkit.telemetry import ambient
from flowkit.transports.memory.transport import MemoryTransport
from flowkit.transports.sql.transport import SqlTransport

MEMORY = "sqlite:///:memory:"
ROUNDS = 100_000
"""Most rounds without a pause. More mean that flows send messages to themselves without end."""


class VirtualClock:
    """A clock that moves only by `advance`."""

    def __init__(self) -> None:
        self._now = time.time()

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        self._now += seconds


class Harness:
    """Runs the flows of an app in the calling thread, during `until_quiet` and `advance` only. A context manager.

    The database is in memory by default. `database_url` names another one, whose schema is upgraded. PostgreSQL has its
    own clock, so `advance` shifts the times of waiting messages there. `broker=True` puts a broker in memory, with
    redelivery, between the flows: `harness.broker`. `seed` sets the random numbers. Raises ConfigError and
    DefinitionError.
    """

    def __init__(self, app: App, database_url: str = MEMORY, *, broker: bool = False, seed: int = 0) -> None:
        self.app = app
        self.clock = VirtualClock()
        self.outcomes: list[tuple[str, Message, Outcome]] = []
        """Flow, message and outcome of each delivery."""
        self._sent: list[Message] = []
        settings = Settings(database_url=database_url, broker_url="")
        self.store = open_store(settings, check=False, clock=self.clock)
        self._virtual = self.store.dialect.name == "sqlite"
        if not self._virtual:
            self.store.schema.upgrade()
            if app.metadata is not None:
                app.metadata.create_all(self.store.dialect.engine)
        self.broker = MemoryTransport(self.clock)
        transport = self.broker if broker else SqlTransport(self.store, settings.lease)
        random_numbers = random.Random(seed)  # noqa: S311 - jitter
        self.services = Services(
            settings, self.store, transport, self.clock, new_id, random_numbers.random, ambient("flowkit")
        )
        self.worker = Worker(app, self.services)
        for lane in self.worker.lanes:
            lane.pipeline.observe = self._observer(lane.pipeline.observe)

    def publish(self, channel: Channel[T] | str, value: T | Any, **options: Any) -> str:
        """Publish from outside a flow, as `app.publish` does. Returns the message's id."""
        return self.app.publish(channel, value, **options)

    def until_quiet(self) -> None:
        """Run until nothing is due. Blocks. Raises RuntimeError after ROUNDS rounds."""
        for _ in range(ROUNDS):
            if not self.worker.step():
                return
        raise RuntimeError(f"app {self.app.name} is not quiet after {ROUNDS} rounds: do its flows send to themselves?")

    def advance(self, time: duration.Duration) -> None:
        """Let `time` pass, then run until nothing is due. Blocks. Raises RuntimeError."""
        seconds = duration.seconds(time, "advance")
        self.clock.advance(seconds)
        if not self._virtual:
            self._shift(seconds)
        self.until_quiet()

    def sent(self, channel: Channel[T] | str) -> list[Any]:
        """The values that flows sent to a channel, with or without subscribers, in the order of their commits."""
        wanted = channel if isinstance(channel, Channel) else self.app.channels[channel]
        return [wanted.body.decode(one.body) for one in self._sent if one.channel == wanted.name]

    def dead(self) -> list[DeadLetter]:
        """The dead letters, the oldest first."""
        letters = self.store.dead_letters
        found: list[DeadLetter] = letters.read(letters.select())
        return found

    def balances(self) -> dict[str, Balance]:
        """The ledger of each flow. Messages at the broker count as pending."""
        return pending.balances(self.store.ledger, self.services.transport)

    def session(self) -> Session:
        """A session on the store's database, to read its rows. The caller closes it."""
        return Session(self.store.dialect.engine.execution_options(isolation_level="AUTOCOMMIT"))

    def __enter__(self) -> "Harness":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release leased messages, and close the services."""
        self.worker.close()
        self.app.close()

    def _observer(self, before: Callable[[Sequence[Item]], None]) -> Callable[[Sequence[Item]], None]:
        def observe(items: Sequence[Item]) -> None:
            before(items)
            for item in items:
                if item.outcome is not None:
                    self.outcomes.append((item.delivery.flow, item.delivery.message, item.outcome))
                if isinstance(item.outcome, Done) and item.outbox is not None:
                    self._sent += [outgoing.message for outgoing in item.outbox.sent]

        return observe

    def _shift(self, seconds: float) -> None:
        moved = int(seconds * 1_000_000)
        self.store.retention.look_again()  # rows that it has checked grow older now
        with self.store.transaction() as unit:
            unit.write("UPDATE flowkit_messages SET due = due - %s, staged = staged - %s", [(moved, moved)])
            unit.write("UPDATE flowkit_inbox SET changed = changed - %s", [(moved,)])
            unit.write("UPDATE flowkit_dead SET died = died - %s", [(moved,)])
