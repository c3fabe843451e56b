"""Dead letters: operators choose, read, retry and discard them, in steps that fit memory and one transaction."""

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
    """One step of retrying or discarding."""

    letters: int
    done: int
    """Number of them that were still dead."""


def check_flow(store: OperatedStore, flow: str) -> None:
    """Raise FlowKitError for a flow that the store does not know, and suggest a similar name. Blocks."""
    subscribed = store.subscribers.channels()
    if flow not in subscribed and flow not in (balances := store.ledger.balances()):
        meant = similar(flow, {*subscribed, *balances})
        raise FlowKitError(f"there are no such dead letters: no flow {plain(flow)} is in this store{meant}")


def batches(letters: Sequence[str]) -> Iterator[Sequence[str]]:
    """The letters, BATCH at a time."""
    for start in range(0, len(letters), BATCH):
        yield letters[start : start + BATCH]


def pages(letters: DeadLetters, wanted: Sequence[str]) -> Iterator[list[DeadLetter]]:
    """Read these letters without their bodies and stacks, which take memory. Blocks for each page."""
    return (letters.read(batch, whole=False) for batch in batches(wanted))


def read(letters: DeadLetters, letter: str) -> DeadLetter:
    """Read one letter with its body and stack. Blocks. Raises FlowKitError if there is none."""
    found = letters.read([letter])
    if not found:
        raise FlowKitError(f"there is no dead letter {letter}; see flowkit dead list")
    return found[0]


def choose(letters: DeadLetters, named: Sequence[str], flow: str | None, error: str | None) -> list[str]:
    """The ids of the named letters, else of all letters of a flow or an error, the oldest first. Blocks. Raises
    FlowKitError if there are none."""
    wanted = list(dict.fromkeys(named)) or letters.select(flow, error)
    if not wanted:
        raise FlowKitError("there are no such dead letters")
    return wanted


def refused(letters: DeadLetters, wanted: Sequence[str]) -> int:
    """Count the refused letters among these: they are not the messages that they claim to be. Blocks."""
    return sum(one.reason == REFUSED for page in pages(letters, wanted) for one in page)


def settle(letters: DeadLetters, verb: Verb, wanted: Sequence[str]) -> Iterator[Settled]:
    """Retry or discard these letters, BATCH per transaction, and yield after each. Blocks."""
    act = letters.retry if verb == "retry" else letters.discard
    for batch in batches(wanted):
        yield Settled(len(batch), act(batch))
