"""Names that people write: of flows and apps."""

from collections.abc import Collection
from difflib import get_close_matches

from flowkit.plain import plain


def similar(name: str, known: Collection[str]) -> str:
    """Ask whether one of the known names is meant; empty where none is like it, or is its end."""
    full = [one for one in sorted(known) if one.endswith(f".{name}")]
    found = full or get_close_matches(name, sorted(known), 1)
    return f"; is {plain(found[0])} meant?" if found else ""
