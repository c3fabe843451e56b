"""The transport: carries copies from the store to the lanes that receive them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from flowkit.ports.delivery import Copy, Delivery, Receipt, Shared


class Consumer(Protocol):
    """Where a lane gets the messages of its flow."""

    @property
    def stocked(self) -> bool:
        """Whether it holds something that only this lane can receive. Any thread may ask; does not block."""

    def receive(self, limit: int) -> list[Delivery]:
        """What is there, up to `limit`, without waiting for more."""

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        """These are finished: their unit of work is committed."""

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """Give these back unfinished: any lane may have them now."""

    def close(self) -> None:
        """Stop receiving."""


class Transport(Protocol):
    """Carries copies from the store to the flows they are addressed to."""

    hops: bool
    """Whether copies leave the store's rows, for a broker. Otherwise the rows are the queue."""
    lease: float
    """Seconds for which rows are born leased to the lane that sends them after its commit; 0 if nothing hops."""
    limit: int
    """The largest body, in bytes."""

    @property
    def ready(self) -> bool:
        """Whether `send` has a chance now. Does not block."""

    @property
    def hindered(self) -> Mapping[str, str]:
        """Where consumers of this transport can receive nothing, while they can elsewhere: address -> why. Empty while
        the transport as a whole is away, which `wait` raises. Any thread may ask; does not block."""

    def declare(self, flows: Collection[str], shared: Collection[Shared] = ()) -> None:
        """Make the places that these flows receive from, and those where they meet other programs.

        Raises ConfigError where one is not what it must be.
        """

    def audit(self, flows: Collection[str], shared: Collection[Shared] = ()) -> Sequence[str]:
        """What is to be said of these places as they are; none is made. Raises as `declare` does."""

    def doubts(self, deadlines: Mapping[str, float]) -> Sequence[str]:
        """Warnings of connections that are not encrypted, and of flows whose handlers may take so many seconds that the
        transport hands a message out again meanwhile. Does not block."""

    def others(self, worker: str, is_known: Callable[[], bool]) -> Mapping[str, str]:
        """The workers that receive for this store by this transport too, whatever their database: worker -> its host
        and process. From now on this worker answers the same question, while `is_known`: its database has recorded it
        lately.

        Blocks, at most for a second. Empty where all that receive share the database.
        """

    def consumer(self, flow: str, worker: str, limit: int) -> Consumer:
        """A consumer of one flow's messages for one lane, which receives at most `limit` at once."""

    def send(self, copies: Sequence[Copy]) -> list[Receipt]:
        """Carry away committed copies. One receipt each, confirmed or not; none where the rows are the queue.

        Blocks until all are confirmed, at most for the transport's own deadline.
        """

    def wait(self, seconds: float, flows: Collection[str]) -> set[str]:
        """Block until one of these flows may have something to receive, at most so long. Which may; others too.

        Raises BrokerUnavailable while nothing can be received.
        """

    def depths(self, flows: Collection[str]) -> Mapping[str, int]:
        """How many messages wait for these flows outside of the store's rows."""

    def empty(self, flow: str, keep: Callable[[Sequence[Delivery]], None]) -> None:
        """Hand all that waits for a flow outside of the store's rows to `keep`, some at a time, and remove the place
        that it receives from. An error of `keep` passes, and messages that it did not take are still there.

        Blocks. Raises ConfigError while somebody receives for the flow, and BrokerUnavailable.
        """

    def close(self) -> None:
        """Release every connection."""
