"""The dead letter of a message: its reason and its error, as text that every database can store."""

import traceback

from flowkit.disclosure import told
from flowkit.engine.item import Exhausted, Item
from flowkit.errors import Undecodable
from flowkit.ports import Dead, Letter


def letter(item: Item, dead: Dead) -> Letter:
    """The dead letter of a message, with the traceback of its error and the number of its attempts."""
    error = dead.error
    try:
        stack = "".join(traceback.format_exception(error)) if error else ""
    except Exception:
        stack = "(cannot be shown)"
    attempts = item.claim.attempts if item.claim else 0
    ran = not isinstance(error, Undecodable | Exhausted)
    return Letter(item.delivery, dead.reason, describe(error), storable(stack), attempts + ran)


def describe(error: BaseException | None) -> str:
    """One line for an error: its class, and its text without data. Empty for None."""
    return storable(told(error))


def storable(text: str) -> str:
    """The text with NUL and lone surrogates escaped, so that every database can store it."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
