"""The servers of a broker URL, as connection parameters."""

import re
import ssl
from collections.abc import Sequence
from urllib.parse import parse_qsl, unquote, urlsplit

from pika import ConnectionParameters, PlainCredentials, SSLOptions

from flowkit.errors import ConfigError
from flowkit.url import is_loopback, mask

HEARTBEAT_SECONDS = 20
CONNECT_SECONDS = 10
PORTS = {"amqp": 5672, "amqps": 5671}
EXAMPLE = "amqp://user:password@host:5672,other-host:5672/vhost"
OPTIONS = ("cacertfile", "certfile", "keyfile", "verify", "heartbeat")
"""Query parameters, as in RabbitMQ's URI specification (https://www.rabbitmq.com/docs/uri-query-parameters)."""
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\],]+)(?::(?P<port>\d{1,5}))?")


def servers(url: str, setting: str = "FLOWKIT_BROKER_URL") -> Sequence[ConnectionParameters]:
    """Return the servers of a URL, in its order. Raises ConfigError, which names the setting and what to write."""
    try:
        return _servers(url)
    except ConfigError as error:
        raise ConfigError(f"{setting} is {mask(url)}: {error}") from None


def _servers(url: str) -> Sequence[ConnectionParameters]:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError(f"it cannot be read; write {EXAMPLE}") from None
    user, password, hosts = _authority(parts.netloc)
    options = _options(parts.query)
    if user == "guest" and not all(is_loopback(host) for host, _ in hosts):
        raise ConfigError("the user guest is for loopback only; make a user of its own with rabbitmqctl add_user")
    context = _tls(options) if parts.scheme == "amqps" else None
    return [
        ConnectionParameters(
            host=host,
            port=port or PORTS[parts.scheme],
            virtual_host=unquote(parts.path[1:]) or "/",
            credentials=PlainCredentials(user, password),
            heartbeat=int(options.get("heartbeat", HEARTBEAT_SECONDS)),
            ssl_options=SSLOptions(context, host) if context else None,
            socket_timeout=CONNECT_SECONDS,
            stack_timeout=CONNECT_SECONDS,
            connection_attempts=1,
            client_properties={"connection_name": "flowkit"},
        )
        for host, port in hosts
    ]


def _authority(netloc: str) -> tuple[str, str, list[tuple[str, int | None]]]:
    """Return user, password and hosts, with RabbitMQ's defaults for missing parts."""
    login, _, places = netloc.rpartition("@")
    user, _, password = login.partition(":")
    hosts: list[tuple[str, int | None]] = []
    for place in places.split(","):
        found = _HOST.fullmatch(place)
        if found is None or int(found["port"] or 1) not in range(1, 65536):
            raise ConfigError(f"the host {place!r} cannot be read; write {EXAMPLE}")
        hosts.append((found["host"].strip("[]"), int(found["port"]) if found["port"] else None))
    return unquote(user) or "guest", unquote(password) or ("" if user else "guest"), hosts


def _options(query: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name in options:
        if name not in OPTIONS:
            raise ConfigError(f"its parameter {name} is unknown; known ones are {', '.join(OPTIONS)}")
    if not options.get("heartbeat", "1").isdigit() or options.get("heartbeat") == "0":
        raise ConfigError("heartbeat is a number of seconds, at least 1")
    return options


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    """Return a TLS context that verifies, by default, against the system's authorities or `cacertfile`."""
    try:
        context = ssl.create_default_context(cafile=options.get("cacertfile"))
        if "certfile" in options:
            context.load_cert_chain(options["certfile"], options.get("keyfile"))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"a certificate or key cannot be read: {error}") from None
    if options.get("verify", "verify_peer") not in ("verify_peer", "verify_none"):
        raise ConfigError("verify is verify_peer or verify_none")
    if options.get("verify") == "verify_none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
