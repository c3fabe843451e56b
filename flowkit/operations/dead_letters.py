"""Dead letters: chosen, read and settled in batches, as many at a time as memory and one transaction should hold."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from flowkit.errors import FlowKitError
from flowkit.operations.names import similar
from flowkit.operations.store import OperatedStore
from flowkit.plain import plain
from flowkit.ports import REFUSED
from flowkit.store.dead_letters import DeadLetter, DeadLetters

BATCH = 500
Verb = Literal["retry", "discard"]


class Settled(NamedTuple):
    """One batch that was sent again, or given up for good."""

    letters: int
    done: int
    """Of these, the letters that were still dead."""


def check_flow(store: OperatedStore, flow: str) -> None:
    """Raise FlowKitError for a flow that nothing has: the letters of another one may be meant."""
    subscribed = store.subscribers.channels()
    if flow not in subscribed and flow not in (balances := store.ledger.balances()):
        meant = similar(flow, {*subscribed, *balances})
        raise FlowKitError(f"there are no such dead letters: no flow {plain(flow)} is in this store{meant}")


def batches(letters: Sequence[str]) -> Iterator[Sequence[str]]:
    """The letters, BATCH at a time."""
    for start in range(0, len(letters), BATCH):
        yield letters[start : start + BATCH]


def pages(letters: DeadLetters, wanted: Sequence[str]) -> Iterator[list[DeadLetter]]:
    """These letters without what takes memory: bodies and stacks."""
    return (letters.read(batch, whole=False) for batch in batches(wanted))


def read(letters: DeadLetters, letter: str) -> DeadLetter:
    """One letter, with everything that is known of it. Raises FlowKitError where it is not there."""
    found = letters.read([letter])
    if not found:
        raise FlowKitError(f"there is no dead letter {letter}; see flowkit dead list")
    return found[0]


def choose(letters: DeadLetters, named: Sequence[str], flow: str | None, error: str | None) -> list[str]:
    """The letters that are named, else those of a flow or an error, the oldest first. Raises FlowKitError where there
    are none."""
    wanted = list(dict.fromkeys(named)) or letters.select(flow, error)
    if not wanted:
        raise FlowKitError("there are no such dead letters")
    return wanted


def refused(letters: DeadLetters, wanted: Sequence[str]) -> int:
    """Count those of them that are not the messages that they claim to be."""
    return sum(one.reason == REFUSED for page in pages(letters, wanted) for one in page)


def settle(letters: DeadLetters, verb: Verb, wanted: Sequence[str]) -> Iterator[Settled]:
    """Retry or discard these, and yield after each batch."""
    act = letters.retry if verb == "retry" else letters.discard
    for batch in batches(wanted):
        yield Settled(len(batch), act(batch))
