"""Text that a terminal shows and does not obey."""


def plain(text: str, kept: str = "\n\t") -> str:
    """Text without control characters, except those `kept`: messages and errors come from outside."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in kept else one.encode("unicode_escape").decode() for one in text)
