"""The channels of an app, by name, and how each of them came to be known: declared, or only named by a text."""

from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

from flowkit.errors import DefinitionError
from flowkit.model.channel import Channel

LIKE = 0.85
"""The share of two names that is the same where one of them is the other one with a mistake in it."""


class Channels(dict[str, Channel[Any]]):
    """The channels of one app, by name. Nothing here blocks."""

    def __init__(self) -> None:
        self._named = set[str]()
        """Channels that nobody declared: only a text names them."""

    @property
    def optional(self) -> frozenset[str]:
        """The channels whose messages may have no subscriber."""
        return frozenset(name for name, channel in self.items() if channel.optional)

    @property
    def shared(self) -> frozenset[str]:
        """The channels where other programs publish and receive too."""
        return frozenset(name for name, channel in self.items() if channel.shared)

    def declare(self, channel: Channel[Any]) -> Channel[Any]:
        """Declare a channel. Returns the channel of this name that was declared first, if there is one.

        Raises DefinitionError when that one has another type or other options.
        """
        known = self.setdefault(channel.name, channel)
        self._named.discard(channel.name)
        if (known.type, known.optional, known.shared) != (channel.type, channel.optional, channel.shared):
            raise DefinitionError(
                f"channel {channel.name} is declared twice, as {known.declared} and as {channel.declared}; "
                "declare it once and use the object"
            )
        return known

    def named(self, channel: Channel[Any] | str) -> Channel[Any]:
        """Return the channel that a flow names, by its object or by its name. A name that nobody declared becomes a
        channel of any values. Raises DefinitionError for the channel of another app."""
        if isinstance(channel, Channel):
            if self.setdefault(channel.name, channel) is not channel:
                raise DefinitionError(f"channel {channel.name} belongs to another app; declare it on this one")
            return channel
        if channel not in self:
            self[channel] = Channel(channel)
            self._named.add(channel)
        return self[channel]

    def meant(self, name: str, received: Collection[str]) -> str | None:
        """Return the declared channel that a text probably means, or None.

        That is a channel with nearly the same name which is not among the `received` ones: no flow receives from it.
        """
        if name not in self._named:
            return None
        lonely = [one for one in self if one not in self._named and one not in received]
        return next(iter(get_close_matches(name, lonely, 1, LIKE)), None)
