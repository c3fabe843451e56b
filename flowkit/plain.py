"""Text without control characters, so that it cannot control a terminal."""

ENDS = "\n\t"
"""The control characters that a text of several lines may keep."""


def plain(text: str, kept: str = "") -> str:
    """Return text with all control characters but those `kept` escaped: messages and errors may hold any."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in kept else one.encode("unicode_escape").decode() for one in text)
