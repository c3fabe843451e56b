"""The dead letter of a message: its reason and its error, as text that every database takes."""

import traceback

from flowkit.disclosure import told
from flowkit.engine.item import Exhausted, Item
from flowkit.errors import Undecodable
from flowkit.ports import Dead, Letter


def letter(item: Item, dead: Dead) -> Letter:
    """Return the dead letter of a message."""
    error = dead.error
    try:
        stack = "".join(traceback.format_exception(error)) if error else ""
    except Exception:
        stack = "(cannot be shown)"
    attempts = item.claim.attempts if item.claim else 0
    ran = not isinstance(error, Undecodable | Exhausted)
    return Letter(item.delivery, dead.reason, describe(error), storable(stack), attempts + ran)


def describe(error: BaseException | None) -> str:
    """Return one line that describes an error, without data of messages: see `told`."""
    return storable(told(error))


def storable(text: str) -> str:
    """Return text that every database takes, without NUL and lone surrogates."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
