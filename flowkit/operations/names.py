"""Names of flows and apps that operators type."""

from collections.abc import Collection
from difflib import get_close_matches

from flowkit.plain import plain


def similar(name: str, known: Collection[str]) -> str:
    """Return a question, in parentheses, whether a known name is meant that ends in `.name` or resembles it. Returns
    an empty text if there is none."""
    full = [one for one in sorted(known) if one.endswith(f".{name}")]
    found = full or get_close_matches(name, sorted(known), 1)
    return f" (is {plain(found[0])} meant?)" if found else ""
