"""URLs of services, for people: without their secrets."""

import ipaddress
import re
from collections.abc import Iterable

_SECRET = re.compile(r"(://[^:/?#]*):.*@")


def mask(url: str) -> str:
    """The URL with its password replaced and its parameters, which may hold secrets too, left out.

    Rather too much is masked than too little: a password that should have been quoted may hold any character.
    """
    return _SECRET.sub(r"\1:***@", url).split("?", 1)[0]


def is_unquoted(url: str) -> bool:
    """Whether a user or a password has an @ or a / as it is. The rest of it is then taken for the host, and told in
    errors and logs."""
    place = url.partition("://")[2].partition("?")[0]
    authority, _, path = place.partition("/")
    return "@" in authority.partition("@")[2] or bool(authority and "@" not in authority and "@" in path)


def scheme(url: str) -> str:
    """What a URL begins with, also one that cannot be parsed."""
    return url.partition(":")[0].lower()


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself: a name or an address of loopback, or the folder of a Unix socket."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host in ("", "localhost") or host.startswith(("/", "@"))


def exposed(setting: str, url: str, places: Iterable[str], remedy: str) -> list[str]:
    """The warning that what travels to these places can be read; nothing where there are none."""
    found = ", ".join(sorted(set(places)))
    if not found:
        return []
    return [
        f"{setting} is {mask(url)}: the connection to {found} is not encrypted, so passwords and messages can be read "
        f"and changed on the way; {remedy} (docs/guides/security.md)"
    ]
