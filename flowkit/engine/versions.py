"""Versions of an app side by side: which messages are for which, and when one may begin what was another one's.

The rules (see docs/decisions/0014-rollouts.md):

- The baseline receives from the flow's address, and hands on what is the candidate's, to `FLOW@candidate`.
- The candidate receives from there. After each change it rests until every worker of the app conforms to it, and hands
  back what is no more its own.
- A version that is neither receives nothing, and ends what it has in hand.
- A worker conforms when it has nothing in hand that is another one's by now.
- When the rollout is over, what the candidate had is received by the baseline.
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
HANDED_ON = 10
"""So many batches may be handed on before a lane turns to something else."""
FOLLOW_SECONDS = 0.1
"""So long the upkeep waits for a source that is at work: the next look asks again."""


NONE = "(none)"
"""What instances without a version are called, for people."""


def named(version: str) -> str:
    """A version's name for people."""
    return version or NONE


def bucket(message: Message) -> int:
    """In which percent of the messages one is: by its key, so that those of one key stay together; else by its id."""
    return crc32(str(message.key or message.id).encode("utf-8", "backslashreplace")) % SHARES


class Versions:
    """What a worker of one version does in a rollout. `look` is called by the worker's upkeep; any thread may read."""

    def __init__(self, store: Store, context: Context, app: str, version: str, silent: float, retention: float) -> None:
        """`silent`: seconds after which a silent worker is not waited for. `retention`: for how many the inbox
        remembers."""
        self.store = store
        self.context = context
        self._retention = retention
        self.version = version
        self.epoch = 0
        """All that this worker has in hand conforms to this epoch."""
        self._app = app
        self._silent = silent
        self.consumers: list[VersionedConsumer] = []
        self._due: set[str] = set()
        self.rollout = store.rollouts.enter(app, version, silent)
        if self.rollout is not None:
            self.epoch = self.rollout.epoch

    def look(self) -> bool:
        """See what the rollout is now, and follow. Blocks. Whether the worker has come to another epoch."""
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
        """Whether the store had due rows there, at the last look."""
        return address in self._due

    @property
    def state(self) -> tuple[int, bool]:
        """What changes when there may be something else to receive."""
        return (self.rollout.epoch, self.rollout.settled) if self.rollout is not None else (0, True)

    @property
    def beside(self) -> bool:
        """Whether another version of the app handles messages too."""
        return self.rollout is not None and (self.rollout.going_on or not self.rollout.settled)

    @property
    def role(self) -> str:
        """baseline, candidate, or neither of them."""
        rollout = self.rollout
        if rollout is None or rollout.baseline == self.version:
            return "baseline"
        return "candidate" if rollout.going_on and rollout.candidate == self.version else "none"

    def places(self, flow: str) -> tuple[str, ...]:
        """The addresses that this version receives from now."""
        rollout, role = self.rollout, self.role
        if role == "candidate":
            return (flow + CANDIDATE,)
        if role == "none":
            return ()
        # What the candidate had is the baseline's when the rollout is over.
        over = rollout is not None and self.shared and rollout.settled and not rollout.going_on
        return (flow, flow + CANDIDATE) if over else (flow,)

    @property
    def rests(self) -> bool:
        """Whether this version begins nothing, until all workers conform: it is to get what others may have in hand."""
        rollout = self.rollout
        return rollout is not None and self.shared and not rollout.settled and rollout.candidate == self.version

    def theirs(self, delivery: Delivery) -> bool:
        """Whether a message is for the other version."""
        rollout = self.rollout
        if rollout is None or not self.shared:
            return False
        if rollout.candidate == self.version:
            return rollout.baseline != self.version and bucket(delivery.message) >= rollout.weight
        # What other programs sent has no id yet by which it would be told from what was handed on before.
        return bool(rollout.reach) and not delivery.foreign and bucket(delivery.message) < rollout.reach

    def can_go(self, delivery: Delivery) -> bool:
        """Whether a message can be handed on: what cannot be written as it is, or is older than the inbox remembers, is
        dead where it was found. A foreign one is adopted there: a row does not tell that it is foreign."""
        if delivery.foreign:
            return False
        try:
            check_envelope(delivery)
        except Undecodable:
            return False
        return self.context.clock.now() - delivery.staged <= self._retention


class VersionedConsumer:
    """Implements ports.Consumer: what is for this version, from where it is. The rest is handed on."""

    def __init__(self, versions: Versions, flow: str, open: Callable[[str], Consumer]) -> None:
        """`open` makes the source of an address. Blocks, and raises, as that does."""
        self.flow = flow
        self._versions = versions
        self._open = open
        self._lock = threading.RLock()
        self._closed = False
        self._places: dict[str, Consumer] = {}
        self._in_hand: dict[Hashable, Held] = {}
        """What was received and is not settled or released."""
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
        """For how long something has been in hand."""
        held = self._in_hand.get(handle_of(delivery))
        return self._versions.context.clock.monotonic() - held.since if held is not None else 0.0

    def conforms(self) -> bool:
        """Whether nothing is in hand that is another version's by now. Any thread may ask; False while it is busy."""
        if not self._lock.acquire(timeout=FOLLOW_SECONDS):
            return False
        try:
            wanted = () if self._closed else self._versions.places(self.flow)
            self._leave(wanted)
            if self._versions.rests or not wanted:
                return not self._in_hand
            return not any(self._versions.theirs(one.came) for one in self._in_hand.values())
        finally:
            self._lock.release()

    def _go(self) -> tuple[str, ...]:
        """Be where this version receives from now."""
        wanted = () if self._closed else self._versions.places(self.flow)
        if wanted != tuple(self._places):
            for address in wanted:
                if address not in self._places:
                    self._places[address] = self._open(address)
            self._leave(wanted)
        return wanted

    def _leave(self, wanted: Collection[str]) -> None:
        """Close the other places, each as soon as nothing is in hand of it."""
        for address in set(self._places) - set(wanted) - {one.address for one in self._in_hand.values()}:
            self._places.pop(address).close()

    def _is_worth_it(self, address: str) -> bool:
        """Whether something may be there. What the candidate had is looked for seldom, not with each batch."""
        beside = address != self.flow and self._versions.role == "baseline"
        return not beside or self._places[address].stocked or self._versions.is_due(address)

    def _take(self, address: str, limit: int, mine: list[Delivery], state: tuple[int, bool]) -> None:
        """Receive from one place, up to the limit. What is another version's is handed on, and makes room. Once the
        rollout is in another state than this, whose they are is to be seen anew."""
        place = self._places[address]
        for _ in range(HANDED_ON):
            arrived = place.receive(limit - len(mine)) if len(mine) < limit else []
            theirs = []
            if self._versions.shared:
                theirs = [one for one in arrived if self._versions.theirs(one) and self._versions.can_go(one)]
            if self._versions.state != state:
                place.release(arrived)
                return
            if theirs:
                try:
                    self._hand_on(place, theirs)
                except BaseException:
                    place.release(arrived)
                    raise
            gone, since = {handle_of(one) for one in theirs}, self._versions.context.clock.monotonic()
            for one in arrived:
                if handle_of(one) not in gone:
                    # The tags of two places may be the same.
                    kept = one if address == self.flow else one._replace(flow=self.flow, tag=(address, one.tag))
                    self._in_hand[handle_of(kept)] = Held(address, one, since)
                    mine.append(kept)
            if not theirs:
                return

    def _hand_on(self, place: Consumer, theirs: Sequence[Delivery]) -> None:
        """Address these to the other version, in a transaction with their removal here. What took effect meanwhile is
        only removed: its copy would live longer than the inbox has to remember."""
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
        """These as they came, by where they came from. They are in hand no more."""
        found: dict[str, list[Delivery]] = {}
        for one in deliveries:
            held = self._in_hand.pop(handle_of(one), None)
            address, came = (held.address, held.came) if held is not None else (self.flow, one)
            found.setdefault(address, []).append(came)
        return [(self._places[address], some) for address, some in found.items() if address in self._places]


class Held(NamedTuple):
    """What is in hand."""

    address: str
    came: Delivery
    """As it came from there."""
    since: float
    """When, by the monotonic clock."""
