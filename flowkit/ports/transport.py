"""The transport: carries copies from the store to the lanes that receive them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from flowkit.ports.delivery import Copy, Delivery, Receipt, Shared


class Consumer(Protocol):
    """The object from which one lane receives its messages. The lane's thread calls it; calls may block briefly."""

    @property
    def stocked(self) -> bool:
        """Whether it holds messages that only this lane can receive. Any thread may call it; does not block."""

    def receive(self, limit: int) -> list[Delivery]:
        """Return the messages that are there, at most `limit`. Does not wait for more."""

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        """Finish these deliveries, whose unit of work is committed. They never come again."""

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """Give these deliveries back unfinished. Any lane may receive them now."""

    def close(self) -> None:
        """Stop receiving."""


class Transport(Protocol):
    """Carries copies from the store to the flows they are addressed to."""

    hops: bool
    """Whether copies leave the store's rows, for a broker. Otherwise the rows are the queue."""
    lease: float
    """Seconds for which new rows are leased to the lane that sends them after its commit; 0 if nothing hops."""
    limit: int
    """The largest body, in bytes."""

    @property
    def ready(self) -> bool:
        """Whether `send` can succeed now. Does not block."""

    @property
    def hindered(self) -> Mapping[str, str]:
        """Addresses from which consumers can receive nothing: address -> reason. Empty while the whole transport cannot
        be reached; `wait` raises then. Any thread may call it; does not block."""

    def declare(self, flows: Collection[str], shared: Collection[Shared] = ()) -> None:
        """Create the queues of these flows, and the exchanges of shared channels, or what the transport has for them.

        Raises ConfigError if one exists with other properties. Blocks.
        """

    def audit(self, flows: Collection[str], shared: Collection[Shared] = ()) -> Sequence[str]:
        """Return warnings about these queues and exchanges, and create none. Raises as `declare` does. Blocks."""

    def doubts(self, deadlines: Mapping[str, float]) -> Sequence[str]:
        """Return warnings about connections without encryption, and about flows whose deadline, in seconds, exceeds the
        time after which the transport delivers a message again. Does not block."""

    def others(self, worker: str, is_known: Callable[[], bool]) -> Mapping[str, str]:
        """Return the other workers that receive for this store: worker -> its host and process. Their database may be
        another one. From now on this worker answers the same question of others, while `is_known` returns that its
        database has recorded it lately.

        Blocks for at most a second. Empty if all receivers share the database.
        """

    def consumer(self, flow: str, worker: str, limit: int) -> Consumer:
        """Open a consumer of one flow for one lane of `worker`. It holds at most `limit` unsettled messages."""

    def send(self, copies: Sequence[Copy]) -> list[Receipt]:
        """Send committed copies. Returns one receipt for each, confirmed or not; none if the rows are the queue.

        Blocks until all are confirmed, at most for the transport's own deadline.
        """

    def wait(self, seconds: float, flows: Collection[str]) -> set[str]:
        """Block until one of these flows may have messages, at most `seconds`. Returns the flows that may, others
        included. Raises BrokerUnavailable while nothing can be received.
        """

    def depths(self, flows: Collection[str]) -> Mapping[str, int]:
        """Return flow -> the number of messages that are queued outside of the store's rows. Blocks."""

    def empty(self, flow: str, keep: Callable[[Sequence[Delivery]], None]) -> None:
        """Pass all messages that are queued for a flow outside of the store's rows to `keep`, in batches, and remove
        the queue. After an error of `keep`, which is raised, the messages that it did not take are still queued.

        Blocks. Raises ConfigError while a worker receives for the flow, and BrokerUnavailable.
        """

    def close(self) -> None:
        """Release every connection."""
