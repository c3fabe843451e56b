"""Membership: a worker joins the fleet, and makes sure that its database knows all that receive for its store."""

from flowkit.errors import BrokerUnavailable
from flowkit.ports import Clock, Store, Transport, WorkerInfo

KNOWN_SECONDS = 3.0
"""Seconds after which a worker that could not record its heartbeat may have been removed from the fleet by others."""
MEETINGS = 5
"""How often unknown workers are asked again. Each time takes half a second."""


class Membership:
    """The membership of one worker, from its construction on, which blocks.

    Raises BrokerUnavailable if a copy of the database has workers of its own.
    """

    def __init__(self, store: Store, transport: Transport, clock: Clock, worker: WorkerInfo, epoch: int) -> None:
        self._store = store
        self._transport = transport
        self._clock = clock
        self._id = worker.id
        store.fleet.join(worker, epoch)
        self.recorded = clock.monotonic()
        """When the store has recorded this worker last, by the monotonic clock."""
        self._meet_others()

    def leave(self) -> None:
        """Leave the fleet. Blocks."""
        self._store.fleet.leave(self._id)

    def end(self) -> None:
        """Stop saying that the database knows this worker: it soon will not. Does not block."""
        self.recorded = float("-inf")

    def _is_known(self) -> bool:
        """Return whether the database has recorded this worker lately. Any thread may ask."""
        return self._clock.monotonic() - self.recorded < KNOWN_SECONDS

    def _meet_others(self) -> None:
        """Make sure that the database knows each worker that receives for this store. If it does not, a copy of the
        database has workers of its own, and each side would apply a part of the messages.

        Raises BrokerUnavailable. The worker is then started again, because the other side may have ended by then.
        """
        strangers: dict[str, str] = {}
        for _ in range(MEETINGS):  # the database learns in a moment of a worker that leaves or joins right now
            found = self._transport.others(self._id, self._is_known)
            known = self._store.fleet.members() if found else set()
            strangers = {id: where for id, where in found.items() if id not in known}
            if not strangers:
                return
        self.leave()
        id, where = next(iter(strangers.items()))
        raise BrokerUnavailable(
            f"{len(strangers)} worker(s) at the broker receive for this store and are unknown to its database, such as "
            f"worker {id} ({where}): one of two databases is a copy of the other, and each would apply a part of the "
            "messages; stop those workers, or let the copy be a store of its own: flowkit db adopt --apart"
        )
