"""The store as operators' use cases see it: the port of the engine, and the nouns that only operators ask."""

from typing import Protocol, cast

from flowkit.ports import Store
from flowkit.store.dead_letters import DeadLetters
from flowkit.store.keyring import Keyring
from flowkit.store.ledger import Ledger
from flowkit.store.subscribers import Subscribers


class OperatedStore(Store, Protocol):
    """A store that is read and directed by operators."""

    ledger: Ledger
    dead_letters: DeadLetters
    subscribers: Subscribers
    keyring: Keyring


def operated(store: Store) -> OperatedStore:
    """The same store, for operators. Every store that settings open is one."""
    return cast(OperatedStore, store)
