"""The secrets of the store with which messages are signed."""

from collections.abc import Sequence
from typing import NamedTuple


class Key(NamedTuple):
    """A secret of the store. Messages that travel by a broker are signed with it. Its text does not show it."""

    id: str
    secret: bytes
    valid: bool = True
    """Whether messages that it signed are taken. One that is not valid recognises events of this store."""

    def __repr__(self) -> str:
        return f"Key({self.id!r})"


class Ring(NamedTuple):
    """The keys of the store."""

    keys: Sequence[Key]
    """The first one signs; all that are valid verify."""
    lenient: bool = False
    """Whether unsigned messages are taken too: they come from the version before."""
