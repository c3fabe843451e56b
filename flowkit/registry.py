"""A registry of openers: FlowKit's own, and those of installed packages, each under the scheme of its URLs."""

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from flowkit.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class BuiltIn(NamedTuple):
    """An opener of FlowKit's own."""

    target: str
    """`module:function`, imported at its first use: drivers are optional."""
    example: str = ""
    """A URL of it, for errors. Empty where another scheme has the same."""
    system: str = ""
    """The name of the system behind it, for telemetry; that of the scheme if it is empty."""


class Registry(Generic[T]):
    """Finds the opener of a scheme: a built-in one, or the entry point of its name in a group.

    A built-in scheme costs no search of the installed packages, and no package can replace it.
    """

    def __init__(self, group: str, built_in: Mapping[str, BuiltIn]) -> None:
        """`group` is that of the entry points."""
        self._group = group
        self._built_in = built_in

    def find(self, scheme: str) -> T | None:
        """The opener of a scheme; None for a scheme that nobody opens. Raises ConfigError where two packages open it,
        or where its package cannot be imported."""
        known = self._built_in.get(scheme)
        if known is not None:
            module, _, function = known.target.partition(":")
            opener: T = getattr(importlib.import_module(module), function)
            return opener
        return self._installed(scheme)

    def system(self, scheme: str) -> str:
        """The name of the system that a scheme stands for."""
        known = self._built_in.get(scheme)
        return (known.system if known is not None else "") or scheme

    def examples(self) -> str:
        """The URLs that can be written, for errors."""
        found = [known.example for known in self._built_in.values() if known.example]
        installed = {one.name for one in self._entries()} - self._built_in.keys()
        return " or ".join([*found, *(f"{scheme}://…" for scheme in sorted(installed))])

    def _installed(self, scheme: str) -> T | None:
        found = {one.value: one for one in self._entries() if one.name == scheme}
        if len(found) > 1:
            raise ConfigError(
                f"two installed packages open {scheme}:// URLs: {' and '.join(sorted(found))}; uninstall one of them"
            )
        for value, entry in found.items():
            try:
                opener: T = entry.load()
            except (ImportError, AttributeError) as error:
                raise ConfigError(f"{value}, which opens {scheme}:// URLs, cannot be imported: {error}") from None
            return opener
        return None

    def _entries(self) -> "Sequence[EntryPoint]":
        from importlib.metadata import entry_points  # takes its time

        return list(entry_points(group=self._group))
