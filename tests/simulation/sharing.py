"""Messages shared by versions of an app: checks at each call of a handler that its version may handle that message."""

from collections.abc import Coroutine, Iterator
from typing import Any

from flowkit import Outbox
from flowkit.engine.versions import Held, Versions, bucket
from flowkit.engine.worker import Worker
from flowkit.model.handler import Call
from flowkit.ports import Delivery, Giver
from flowkit.store.sql import SqlStore
from tests.simulation.shop import APP
from tests.simulation.world import Process, World


class Sharing:
    """The workers of all versions, and since when the others need not wait for one that was silent."""

    def __init__(self, world: World, store: SqlStore, silent: float) -> None:
        """`silent`: seconds after which a silent worker is not waited for."""
        self._world = world
        self._store = store
        self._silent = silent
        self._versions: dict[Process, Versions] = {}
        self._beaten: dict[Process, float] = {}
        self._lapsed: dict[Process, float] = {}
        """Until when a worker had been silent for too long: what it had in hand by then may be another one's."""

    def join(self, process: Process, worker: Worker, since: float) -> None:
        """A worker has begun, which joined the fleet after `since`."""
        self._versions[process] = worker.versions
        self._beaten[process] = since
        beat = worker.services.store.fleet.beat

        def beaten(*arguments: Any) -> None:
            began = self._world.time
            beat(*arguments)
            if self._world.time - self._beaten[process] > self._silent:
                self._lapsed[process] = self._world.time
            self._beaten[process] = began

        worker.services.store.fleet.beat = beaten  # type: ignore[method-assign, assignment]

    def watched(self, call: Call) -> Call:
        """The same call of a handler, whose message is looked for in the hands of other versions."""

        def called(body: Any, delivery: Delivery, outbox: Outbox, giver: Giver) -> Coroutine[Any, Any, None] | None:
            self._look(delivery)
            return call(body, delivery, outbox, giver)

        return called

    def _look(self, delivery: Delivery) -> None:
        assert self._world.current is not None
        process = self._world.current.process
        mine, share = self._versions[process], bucket(delivery.message)
        if mine.rollout is None:
            return
        mine_of_it = (held for held in _in_flight(mine, delivery.flow) if held.came.message is delivery.message)
        held = next(mine_of_it, None)
        if held is None:
            self._blame(delivery, f"{mine.version} runs it, and does not have it in hand")
        elif self._counts(process, held.since):
            self._compare(delivery, mine, share)

    def _compare(self, delivery: Delivery, mine: Versions, share: int) -> None:
        """Whether any other version has something of this share in hand, or should have it."""
        for other, versions in self._versions.items():
            if other.status is None and versions.version != mine.version:
                for held in _in_flight(versions, delivery.flow):
                    if bucket(held.came.message) == share and self._counts(other, held.since):
                        self._blame(delivery, f"{mine.version} runs it, and {versions.version} has its share in hand")
        now = self._store.rollouts.read(APP, self._silent)
        assert now is not None
        owner = now.candidate if share < now.weight else now.baseline
        if now.settled and owner != mine.version:
            self._blame(delivery, f"{mine.version} runs what is {owner}'s")

    def _counts(self, process: Process, since: float) -> bool:
        """Whether others wait for what this process has had in hand since then."""
        return since > self._lapsed.get(process, 0.0) and self._world.time - self._beaten[process] < self._silent

    def _blame(self, delivery: Delivery, why: str) -> None:
        self._world.blame(AssertionError(f"{delivery.flow}, {delivery.message.id}: {why}"))


def _in_flight(versions: Versions, flow: str) -> Iterator[Held]:
    """What a worker has received of a flow, and not settled."""
    return (held for consumer in versions.consumers if consumer.flow == flow for held in consumer._in_flight.values())
