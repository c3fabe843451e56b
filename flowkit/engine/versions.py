"""Versions of an app side by side: which messages are for which, and when one may begin what was another one's.

The rules (see docs/decisions/0014-rollouts.md):

- The baseline receives from the flow's address, and hands on what is the candidate's, to `FLOW@candidate`.
- The candidate receives from there. After each change it rests until every worker of the app conforms to it, and hands
  back what is no more its own.
- A version that is neither receives nothing, and ends what it has in hand.
- A worker conforms when it has nothing in hand that is another one's by now.
"""

import threading
from binascii import crc32
from collections.abc import Callable, Hashable, Iterable, Sequence

from flowkit.engine.item import check_envelope, handle_of
from flowkit.errors import Undecodable
from flowkit.message import Message
from flowkit.ports import CANDIDATE, Copy, Delivery, Ids, Source, Store

SHARES = 100


def bucket(message: Message) -> int:
    """In which percent of the messages one is: by its key, so that those of one key stay together; else by its id."""
    return crc32(str(message.key or message.id).encode("utf-8", "backslashreplace")) % SHARES


class Versions:
    """What a worker of one version does in a rollout. `look` is called by the worker's upkeep; any thread may read."""

    def __init__(self, store: Store, ids: Ids, app: str, version: str, silent: float) -> None:
        """`silent`: seconds after which a silent worker is not waited for."""
        self.store = store
        self.ids = ids
        self.version = version
        self.epoch = 0
        """All that this worker has in hand conforms to this epoch."""
        self._app = app
        self._silent = silent
        self.sources: list[VersionedSource] = []
        self.rollout = store.enter(app, version, silent)
        if self.rollout is not None:
            self.epoch = self.rollout.epoch

    def look(self) -> bool:
        """See what the rollout is now, and follow. Blocks. Whether the worker has come to another epoch."""
        self.rollout = found = self.store.rollout(self._app, self._silent)
        before = self.epoch
        if found is not None and all([one.follow() for one in self.sources]):
            self.epoch = found.epoch
        return self.epoch != before

    @property
    def state(self) -> tuple[int, bool]:
        """What changes when there may be something else to receive."""
        return (self.rollout.epoch, self.rollout.settled) if self.rollout is not None else (0, True)

    @property
    def compared(self) -> bool:
        """Whether somebody wants to know how this version does."""
        return self.rollout is not None and self.rollout.going_on

    @property
    def role(self) -> str:
        """baseline, candidate, or neither of them."""
        rollout = self.rollout
        if rollout is None or rollout.baseline == self.version:
            return "baseline"
        return "candidate" if rollout.going_on and rollout.candidate == self.version else "none"

    def places(self, flow: str) -> tuple[str, ...]:
        """The addresses that this version receives from now."""
        rollout = self.rollout
        if rollout is None or not rollout.candidate:
            return (flow,) if self.role == "baseline" else ()
        if self.role == "candidate":
            return (flow + CANDIDATE,)
        if self.role == "none":
            return ()
        # What the candidate had is the baseline's when the rollout is over.
        return (flow, flow + CANDIDATE) if rollout.settled and not rollout.going_on else (flow,)

    @property
    def rests(self) -> bool:
        """Whether this version begins nothing, until all workers conform: it is to get what others may have in hand."""
        rollout = self.rollout
        return rollout is not None and not rollout.settled and rollout.candidate == self.version

    def theirs(self, delivery: Delivery) -> bool:
        """Whether a message is for the other version."""
        rollout = self.rollout
        if rollout is None or not rollout.candidate:
            return False
        if rollout.candidate == self.version:
            return rollout.going_on and bucket(delivery.message) >= rollout.weight
        weight = rollout.weight if rollout.settled else max(rollout.weight, rollout.before)
        # What other programs sent has no id yet by which it would be told from what was handed on before.
        return bool(weight) and not delivery.foreign and bucket(delivery.message) < weight


class VersionedSource:
    """Implements ports.Source: what is for this version, from where it is. The rest is handed on."""

    def __init__(self, versions: Versions, flow: str, open: Callable[[str], Source]) -> None:
        """`open` makes the source of an address. Blocks, and raises, as that does."""
        self._versions = versions
        self._flow = flow
        self._open = open
        self._lock = threading.Lock()
        self._closed = False
        self._places: dict[str, Source] = {}
        self._in_hand: dict[Hashable, tuple[str, Delivery]] = {}
        """What was received and is not settled or released: where from, and as it came."""
        versions.sources.append(self)
        self.follow()

    @property
    def stocked(self) -> bool:
        return any(one.stocked for one in list(self._places.values()))

    def receive(self, limit: int) -> list[Delivery]:
        with self._lock:
            wanted = self._follow()
            mine: list[Delivery] = []
            try:
                for address in wanted if not self._versions.rests else ():
                    place = self._places[address]
                    while len(mine) < limit and (arrived := place.receive(limit - len(mine))):
                        mine += self._kept(address, place, arrived)
            except BaseException:
                self.release(mine)
                raise
            return mine

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        for place, some in self._by_place(deliveries):
            place.settle(some)

    def release(self, deliveries: Sequence[Delivery]) -> None:
        for place, some in self._by_place(deliveries):
            place.release(some)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for place in self._places.values():
                place.close()
            self._places.clear()

    def follow(self) -> bool:
        """Receive from where this version has to, from now on. Whether all that is in hand conforms to the rollout."""
        with self._lock:
            wanted = self._follow()
            if self._versions.rests or not wanted:
                return not self._in_hand
            theirs = self._versions.theirs
            return not any(theirs(one) for _, one in list(self._in_hand.values()))

    def _follow(self) -> tuple[str, ...]:
        """Open the places that are wanted, and close others as soon as nothing is in hand of them."""
        wanted = () if self._closed else self._versions.places(self._flow)
        if wanted != tuple(self._places):
            for address in wanted:
                if address not in self._places:
                    self._places[address] = self._open(address)
            left = {address for address, _ in list(self._in_hand.values())}
            for address in set(self._places) - set(wanted) - left:
                self._places.pop(address).close()
        return wanted

    def _kept(self, address: str, place: Source, arrived: Sequence[Delivery]) -> list[Delivery]:
        """What of this is for this version, as deliveries of the flow. The rest is handed on."""
        theirs = [one for one in arrived if self._versions.theirs(one) and _sound(one)]
        if theirs:
            try:
                self._hand_on(place, theirs)
            except BaseException:
                place.release(arrived)
                raise
        gone, mine = {handle_of(one) for one in theirs}, []
        for one in arrived:
            if handle_of(one) not in gone:
                # The tags of two places may be the same.
                kept = one if address == self._flow else one._replace(flow=self._flow, tag=(address, one.tag))
                self._in_hand[handle_of(kept)] = address, one
                mine.append(kept)
        return mine

    def _hand_on(self, place: Source, theirs: Sequence[Delivery]) -> None:
        """Address these to the other version, in a transaction with their removal here. What took effect meanwhile is
        only removed: its copy would live longer than the inbox has to remember."""
        store, ids = self._versions.store, self._versions.ids
        theirs = [one._replace(flow=self._flow) for one in theirs]
        to = self._flow if self._versions.role == "candidate" else self._flow + CANDIDATE
        with store.unit(self._flow) as unit:
            left = unit.look(theirs)
            unit.stage(
                [Copy(ids(), one.message, to, one.generation, one.attempts) for one in theirs if one.identity in left]
            )
            unit.remove([(one.row, one.deliveries) for one in theirs if one.row is not None])
            unit.commit()
        place.settle(theirs)
        store.notify({self._flow})

    def _by_place(self, deliveries: Sequence[Delivery]) -> Iterable[tuple[Source, list[Delivery]]]:
        """These as they came, by where they came from. They are in hand no more."""
        found: dict[str, list[Delivery]] = {}
        for one in deliveries:
            address, came = self._in_hand.pop(handle_of(one), (self._flow, one))
            found.setdefault(address, []).append(came)
        return [(self._places[address], some) for address, some in found.items() if address in self._places]


def _sound(delivery: Delivery) -> bool:
    """Whether a message can be written as it is. What cannot is dead where it was found."""
    try:
        check_envelope(delivery)
    except Undecodable:
        return False
    return True
