"""The store for operators' use cases: the engine's port, and the parts that only operators use."""

from typing import Protocol, cast

from flowkit.ports import Store
from flowkit.store.dead_letters import DeadLetters
from flowkit.store.keyring import Keyring
from flowkit.store.ledger import Ledger
from flowkit.store.subscribers import Subscribers


class OperatedStore(Store, Protocol):
    """A store that operators read and direct."""

    ledger: Ledger
    dead_letters: DeadLetters
    subscribers: Subscribers
    keyring: Keyring


def operated(store: Store) -> OperatedStore:
    """The same store, typed for operators. Every store that settings open is an OperatedStore."""
    return cast(OperatedStore, store)
