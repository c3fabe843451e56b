"""Services: the store and the transport that the settings name, opened by the scheme of their URLs."""

import importlib
import time
from random import SystemRandom
from typing import TYPE_CHECKING, NamedTuple

from flowkit.errors import ConfigError
from flowkit.message import new_id
from flowkit.ports import Clock, Ids, Random, Store, Transport
from flowkit.settings import Settings
from flowkit.telemetry import OFF, Telemetry, ambient
from flowkit.url import mask, scheme

if TYPE_CHECKING:
    from flowkit.store.sql import SqlStore

STORES = {
    "sqlite": "flowkit.store.sqlite",
    "postgresql": "flowkit.store.postgresql",
    "postgres": "flowkit.store.postgresql",
}
"""Database scheme -> the module whose `open_store` opens it. Imported on first use: drivers are optional."""
JITTER = SystemRandom().random
"""Of no seed: a seed shared by all workers must not make them wait in step."""


class SystemClock:
    """The time of this machine."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


class Services(NamedTuple):
    """What a process of an app works with."""

    settings: Settings
    store: Store
    transport: Transport
    clock: Clock = SystemClock()
    ids: Ids = new_id
    random: Random = JITTER
    telemetry: Telemetry = OFF

    def close(self) -> None:
        self.transport.close()
        self.store.close()


def connect(settings: Settings | None = None, check: bool = True, create: bool = True) -> Services:
    """Open the services that the settings name. With `check`, refuse a store whose schema is not this version's; with
    `create`, make a SQLite file that is not there. With a broker, refuse a copy of the store's database.

    Blocks until the database answered. Raises ConfigError, which names the setting and what to write instead.
    """
    settings = settings or Settings.read()
    store = open_store(settings, check, create=create)
    try:
        if settings.broker_url or settings.drain_url:
            store.place.check()
        system = "rabbitmq" if settings.broker_url else "flowkit"
        return Services(settings, store, open_transport(settings, store), telemetry=ambient(system))
    except BaseException:
        store.close()
        raise


def open_transport(settings: Settings, store: "SqlStore") -> Transport:
    """The transport of the settings: the store itself, or the broker that they name. Connects at its first use."""
    if settings.broker_url and settings.drain_url:
        raise ConfigError(
            "FLOWKIT_BROKER_URL and FLOWKIT_DRAIN_URL are both set; set the second alone, to leave a broker for the "
            "database, or the first alone"
        )
    if scheme(settings.broker_url) not in ("", scheme(settings.database_url)):
        return _open_broker("BROKER", settings.broker_url, settings, store)
    from flowkit.transports.sql import SqlTransport

    rows = SqlTransport(store, settings.lease)
    if not settings.drain_url:
        return rows
    from flowkit.transports.drain import DrainingTransport

    return DrainingTransport(rows, _open_broker("DRAIN", settings.drain_url, settings, store))


def _open_broker(setting: str, url: str, settings: Settings, store: "SqlStore") -> Transport:
    if scheme(url) not in ("amqp", "amqps"):
        raise ConfigError(
            f"FLOWKIT_{setting}_URL is {mask(url)}; write amqp://user:password@host/vhost, or unset it to send "
            "messages through the database"
        )
    from flowkit.transports.rabbitmq.transport import RabbitTransport

    return RabbitTransport(
        url,
        store.identity(),
        SystemClock(),
        JITTER,
        settings.broker_management_url,
        f"FLOWKIT_{setting}_URL",
        keys=store.keyring.read,
    )


def open_store(settings: Settings, check: bool = True, clock: Clock | None = None, create: bool = True) -> "SqlStore":
    """Open the database of the settings; with `create`, make a SQLite file that is not there. Raises ConfigError."""
    module = STORES.get(scheme(settings.database_url).split("+", 1)[0])
    if module is None:
        raise ConfigError(
            f"FLOWKIT_DATABASE_URL is {mask(settings.database_url)}; write sqlite:///path/to/file.db or "
            "postgresql://user:password@host/database"
        )
    opened: SqlStore = importlib.import_module(module).open_store(
        settings.database_url, clock or SystemClock(), check, create
    )
    return opened
