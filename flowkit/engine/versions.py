"""Versions of an app side by side: decides which version a message is for, and when a version may begin messages that
were another version's.

The rules (see docs/decisions/0014-rollouts.md):

- The baseline receives from the address of the flow, and passes the candidate's messages to `FLOW@candidate`.
- The candidate receives from that address. After each change of the rollout it rests until every worker of the app
  conforms, and passes back messages that are no longer its own.
- Any other version receives nothing, and finishes the messages that it has in flight.
- A worker conforms when it has no message in flight that is another version's by now.
- When the rollout is over, the baseline receives the candidate's messages too.
"""

import threading
from binascii import crc32
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import NamedTuple

from flowkit.engine.envelope import check_envelope
from flowkit.engine.item import handle_of
from flowkit.errors import Undecodable
from flowkit.message import Message
from flowkit.model.outbox import Context
from flowkit.ports import CANDIDATE, Consumer, Copy, Delivery, Store

SHARES = 100
PASSED_ON = 10
"""The number of batches that a lane passes on in a row before it does something else."""
FOLLOW_SECONDS = 0.1
"""Seconds that maintenance waits for a consumer that is busy. The next look asks it again."""


NONE = "(none)"
"""The name, for people, of the version of instances without one."""


def named(version: str) -> str:
    """Return the name of a version for people."""
    return version or NONE


def bucket(message: Message) -> int:
    """Return the percentile of a message, 0 to 99: by its key, so that messages of one key stay together, else by its
    id."""
    return crc32(str(message.key or message.id).encode("utf-8", "backslashreplace")) % SHARES


class Versions:
    """The part of one worker in the rollout of its app. The worker's maintenance calls `look`; any thread may read."""

    def __init__(self, store: Store, context: Context, app: str, version: str, silent: float, retention: float) -> None:
        """`silent`: seconds without a heartbeat after which a worker is not waited for. `retention`: seconds for which
        the inbox remembers."""
        self.store = store
        self.context = context
        self._retention = retention
        self.version = version
        self.epoch = 0
        """The epoch of the rollout to which all messages that this worker has in flight conform."""
        self._app = app
        self._silent = silent
        self.consumers: list[VersionedConsumer] = []
        self._due: set[str] = set()
        self.rollout = store.rollouts.enter(app, version, silent)
        if self.rollout is not None:
            self.epoch = self.rollout.epoch

    def look(self) -> bool:
        """Read the rollout, and follow it. Returns whether the worker conforms to another epoch now. Blocks."""
        self.rollout = found = self.store.rollouts.read(self._app, self._silent)
        before = self.epoch
        beside = {address for one in self.consumers for address in self.places(one.flow)[1:]}
        self._due = self.store.queue.due(beside) if beside else set()
        if found is not None and all([one.conforms() for one in self.consumers]):
            self.epoch = found.epoch
        return self.epoch != before

    @property
    def shared(self) -> bool:
        """Whether there ever was a candidate, so that messages may be for another version."""
        return self.rollout is not None and bool(self.rollout.candidate)

    def is_due(self, address: str) -> bool:
        """Return whether the store had due rows for an address at the last look."""
        return address in self._due

    @property
    def state(self) -> tuple[int, bool]:
        """The epoch of the rollout, and whether it is settled. Other messages may be there when it changes."""
        return (self.rollout.epoch, self.rollout.settled) if self.rollout is not None else (0, True)

    @property
    def beside(self) -> bool:
        """Whether another version of the app handles messages too."""
        return self.rollout is not None and (self.rollout.going_on or not self.rollout.settled)

    @property
    def role(self) -> str:
        """`baseline`, `candidate` or `none`."""
        rollout = self.rollout
        if rollout is None or rollout.baseline == self.version:
            return "baseline"
        return "candidate" if rollout.going_on and rollout.candidate == self.version else "none"

    def places(self, flow: str) -> tuple[str, ...]:
        """Return the addresses from which this version receives the messages of a flow now."""
        rollout, role = self.rollout, self.role
        if role == "candidate":
            return (flow + CANDIDATE,)
        if role == "none":
            return ()
        # When the rollout is over, the candidate's messages are the baseline's.
        over = rollout is not None and self.shared and rollout.settled and not rollout.going_on
        return (flow, flow + CANDIDATE) if over else (flow,)

    @property
    def rests(self) -> bool:
        """Whether this version begins no message until all workers conform: others may have its messages in flight."""
        rollout = self.rollout
        return rollout is not None and self.shared and not rollout.settled and rollout.candidate == self.version

    def theirs(self, delivery: Delivery) -> bool:
        """Return whether a message is for the other version."""
        rollout = self.rollout
        if rollout is None or not self.shared:
            return False
        if rollout.candidate == self.version:
            return rollout.baseline != self.version and bucket(delivery.message) >= rollout.weight
        # A message of another program has no id yet, by which a copy that was passed on before would be recognized.
        return bool(rollout.reach) and not delivery.foreign and bucket(delivery.message) < rollout.reach

    def can_go(self, delivery: Delivery) -> bool:
        """Return whether a message can be passed on. A message that cannot be written as it is, or that is older than
        the retention, becomes a dead letter here. A foreign message is adopted here, because a row does not tell that
        its message is foreign."""
        if delivery.foreign:
            return False
        try:
            check_envelope(delivery)
        except Undecodable:
            return False
        return self.context.clock.now() - delivery.staged <= self._retention


class VersionedConsumer:
    """Implements ports.Consumer: receives messages of a flow that are for this version, and passes the others on."""

    def __init__(self, versions: Versions, flow: str, open: Callable[[str], Consumer]) -> None:
        """`open` makes the consumer of an address. Blocks, and raises, as `open` does."""
        self.flow = flow
        self._versions = versions
        self._open = open
        self._lock = threading.RLock()
        self._closed = False
        self._places: dict[str, Consumer] = {}
        self._in_flight: dict[Hashable, Held] = {}
        """The messages that were received, and are neither settled nor released."""
        versions.consumers.append(self)
        self._go()

    @property
    def stocked(self) -> bool:
        return any(one.stocked for one in list(self._places.values()))

    def receive(self, limit: int) -> list[Delivery]:
        with self._lock:
            mine: list[Delivery] = []
            state = self._versions.state
            try:
                for address in reversed(self._go()):
                    if not self._versions.rests and self._is_worth_it(address):
                        self._take(address, limit, mine, state)
            except BaseException:
                self.release(mine)
                raise
            return mine

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        with self._lock:
            for place, some in self._by_place(deliveries):
                place.settle(some)

    def release(self, deliveries: Sequence[Delivery]) -> None:
        with self._lock:
            for place, some in self._by_place(deliveries):
                place.release(some)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for place in self._places.values():
                place.close()

    def seconds(self, delivery: Delivery) -> float:
        """Return the seconds for which a message has been in flight."""
        held = self._in_flight.get(handle_of(delivery))
        return self._versions.context.clock.monotonic() - held.since if held is not None else 0.0

    def conforms(self) -> bool:
        """Return whether no message in flight is another version's by now. Returns False while the consumer is busy.
        Any thread may ask."""
        if not self._lock.acquire(timeout=FOLLOW_SECONDS):
            return False
        try:
            wanted = () if self._closed else self._versions.places(self.flow)
            self._leave(wanted)
            if self._versions.rests or not wanted:
                return not self._in_flight
            return not any(self._versions.theirs(one.came) for one in self._in_flight.values())
        finally:
            self._lock.release()

    def _go(self) -> tuple[str, ...]:
        """Open the places from which this version receives now, and leave the others. Returns their addresses."""
        wanted = () if self._closed else self._versions.places(self.flow)
        if wanted != tuple(self._places):
            for address in wanted:
                if address not in self._places:
                    self._places[address] = self._open(address)
            self._leave(wanted)
        return wanted

    def _leave(self, wanted: Collection[str]) -> None:
        """Close the other places, each as soon as none of its messages is in flight."""
        for address in set(self._places) - set(wanted) - {one.address for one in self._in_flight.values()}:
            self._places.pop(address).close()

    def _is_worth_it(self, address: str) -> bool:
        """Return whether messages may be at an address. The baseline looks for the candidate's messages only when the
        store had some, not with each batch."""
        beside = address != self.flow and self._versions.role == "baseline"
        return not beside or self._places[address].stocked or self._versions.is_due(address)

    def _take(self, address: str, limit: int, mine: list[Delivery], state: tuple[int, bool]) -> None:
        """Receive from one place, up to the limit. Messages of another version are passed on, which makes room for
        more. When the rollout is no longer in this `state`, all are released, because they may be another version's."""
        place = self._places[address]
        for _ in range(PASSED_ON):
            arrived = place.receive(limit - len(mine)) if len(mine) < limit else []
            theirs = []
            if self._versions.shared:
                theirs = [one for one in arrived if self._versions.theirs(one) and self._versions.can_go(one)]
            if self._versions.state != state:
                place.release(arrived)
                return
            if theirs:
                try:
                    self._pass_on(place, theirs)
                except BaseException:
                    place.release(arrived)
                    raise
            gone, since = {handle_of(one) for one in theirs}, self._versions.context.clock.monotonic()
            for one in arrived:
                if handle_of(one) not in gone:
                    # The tags of two places may be the same.
                    kept = one if address == self.flow else one._replace(flow=self.flow, tag=(address, one.tag))
                    self._in_flight[handle_of(kept)] = Held(address, one, since)
                    mine.append(kept)
            if not theirs:
                return

    def _pass_on(self, place: Consumer, theirs: Sequence[Delivery]) -> None:
        """Pass messages to the other version: one transaction writes their copies and removes them here.

        A message that took effect meanwhile is only removed: its copy would outlive the memory of the inbox.
        """
        store, ids = self._versions.store, self._versions.context.ids
        theirs = [one._replace(flow=self.flow) for one in theirs]
        to = self.flow + CANDIDATE if self._versions.role == "baseline" else self.flow
        with store.unit(self.flow) as unit:
            left = unit.look(theirs)
            unit.stage(
                [Copy(ids(), one.message, to, one.generation, one.attempts) for one in theirs if one.identity in left]
            )
            unit.remove([(one.row, one.deliveries) for one in theirs if one.row is not None])
            unit.commit()
        place.settle(theirs)
        store.notify({self.flow})

    def _by_place(self, deliveries: Sequence[Delivery]) -> Iterable[tuple[Consumer, list[Delivery]]]:
        """Return the deliveries as they came, by the place that they came from. They are in flight no more."""
        found: dict[str, list[Delivery]] = {}
        for one in deliveries:
            held = self._in_flight.pop(handle_of(one), None)
            address, came = (held.address, held.came) if held is not None else (self.flow, one)
            found.setdefault(address, []).append(came)
        return [(self._places[address], some) for address, some in found.items() if address in self._places]


class Held(NamedTuple):
    """A message in flight."""

    address: str
    came: Delivery
    """The delivery as it came from the address."""
    since: float
    """When the delivery came, by the monotonic clock."""
