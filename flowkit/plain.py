"""Text that a terminal shows and does not obey."""

ENDS = "\n\t"
"""The characters that texts of several lines keep."""


def plain(text: str, kept: str = "") -> str:
    """Text without control characters, except those `kept`: messages and errors come from outside."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in kept else one.encode("unicode_escape").decode() for one in text)
