"""URLs of services, for people: without their secrets."""

from urllib.parse import urlsplit


def mask(url: str) -> str:
    """The URL with its password replaced and its parameters, which may hold secrets too, left out."""
    try:
        secret = urlsplit(url).password
    except ValueError:
        return "an unreadable URL"
    shown = url.replace(f":{secret}@", ":***@", 1) if secret else url
    return shown.split("?", 1)[0]
