"""URLs of services: their forms without secrets, for people, and checks."""

import ipaddress
import re
from collections.abc import Iterable

_SECRET = re.compile(r"(://[^:/?#]*):.*@")


def mask(url: str) -> str:
    """Return a URL with its password masked, and without its parameters, which may hold secrets too.

    Masks aggressively: a password that is not quoted may hold any character.
    """
    return _SECRET.sub(r"\1:***@", url).split("?", 1)[0]


def is_unquoted(url: str) -> bool:
    """Whether a user or password has an unquoted @ or /: its rest would be read as the host, and shown in errors and
    logs."""
    place = url.partition("://")[2].partition("?")[0]
    authority, _, path = place.partition("/")
    return "@" in authority.partition("@")[2] or bool(authority and "@" not in authority and "@" in path)


def scheme(url: str) -> str:
    """Return the scheme of a URL, even if the URL cannot be parsed."""
    return url.partition(":")[0].lower()


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: a loopback name or address, or the folder of a Unix socket."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host in ("", "localhost") or host.startswith(("/", "@"))


def exposed(setting: str, url: str, places: Iterable[str], remedy: str) -> list[str]:
    """Return a warning that connections to these places are not encrypted; an empty list if there are no places."""
    found = ", ".join(sorted(set(places)))
    if not found:
        return []
    return [
        f"{setting} is {mask(url)}: the connection to {found} is not encrypted, so passwords and messages can be read "
        f"and changed on the way; {remedy} (docs/guides/security.md)"
    ]
