"""URLs of services, for people: without their secrets."""

import re

_SECRET = re.compile(r"(://[^:/?#]*):.*@")


def mask(url: str) -> str:
    """The URL with its password replaced and its parameters, which may hold secrets too, left out.

    Rather too much is masked than too little: a password that should have been quoted may hold any character.
    """
    return _SECRET.sub(r"\1:***@", url).split("?", 1)[0]


def scheme(url: str) -> str:
    """What a URL begins with, also one that cannot be parsed."""
    return url.partition(":")[0].lower()
