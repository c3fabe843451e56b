"""Services: the store and the transport that the settings name, opened by the scheme of their URLs."""

import time
from random import SystemRandom
from typing import TYPE_CHECKING, NamedTuple, Protocol

from flowkit.errors import ConfigError
from flowkit.message import new_id
from flowkit.ports import Clock, Ids, Random, Store, Transport
from flowkit.registry import BuiltIn, Registry
from flowkit.settings import Settings
from flowkit.telemetry import ambient
from flowkit.telemetry.port import OFF, Telemetry
from flowkit.transports import Opening, OpenTransport
from flowkit.url import mask, scheme

if TYPE_CHECKING:
    from flowkit.store.sql import SqlStore


class OpenStore(Protocol):
    """A function that opens a store. It is found by the scheme of the URL, in the entry points `flowkit.stores`."""

    def __call__(self, url: str, clock: Clock, check: bool = True, create: bool = True) -> "SqlStore":
        """The store; with `check`, refuse a schema of another version; with `create`, make a file that is not there.
        Raises ConfigError, or StoreUnavailable."""


_POSTGRESQL = "flowkit.store.postgresql:open_store"
STORES: Registry[OpenStore] = Registry(
    "flowkit.stores",
    {
        "sqlite": BuiltIn("flowkit.store.sqlite:open_store", "sqlite:///path/to/file.db"),
        "postgresql": BuiltIn(_POSTGRESQL, "postgresql://user:password@host/database"),
        "postgres": BuiltIn(_POSTGRESQL),
    },
)
_RABBITMQ = "flowkit.transports.rabbitmq:open_transport"
TRANSPORTS: Registry[OpenTransport] = Registry(
    "flowkit.transports",
    {
        "amqp": BuiltIn(_RABBITMQ, "amqp://user:password@host/vhost", "rabbitmq"),
        "amqps": BuiltIn(_RABBITMQ, system="rabbitmq"),
    },
)
JITTER = SystemRandom().random
"""Of no seed: a seed shared by all workers must not make them wait in step."""


class SystemClock:
    """The time of this machine."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


class Services(NamedTuple):
    """The services that a process of an app works with."""

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
        system = TRANSPORTS.system(scheme(settings.broker_url)) if settings.broker_url else "flowkit"
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
        return _open_broker("FLOWKIT_BROKER_URL", settings.broker_url, settings, store)
    from flowkit.transports import drain, sql

    rows = sql.open_transport(_opening("FLOWKIT_DATABASE_URL", settings.database_url, settings, store))
    if not settings.drain_url:
        return rows
    return drain.open_transport(rows, _open_broker("FLOWKIT_DRAIN_URL", settings.drain_url, settings, store))


def _open_broker(setting: str, url: str, settings: Settings, store: "SqlStore") -> Transport:
    open_transport = TRANSPORTS.find(scheme(url))
    if open_transport is None:
        raise ConfigError(
            f"{setting} is {mask(url)}; write {TRANSPORTS.examples()}, or unset it to send messages through the "
            "database"
        )
    return open_transport(_opening(setting, url, settings, store))


def _opening(setting: str, url: str, settings: Settings, store: "SqlStore") -> Opening:
    return Opening(url, setting, settings, store, store.identity, store.keyring.read, SystemClock(), JITTER)


def open_store(settings: Settings, check: bool = True, clock: Clock | None = None, create: bool = True) -> "SqlStore":
    """Open the database of the settings; with `create`, make a SQLite file that is not there. Raises ConfigError."""
    url = settings.database_url
    opener = STORES.find(scheme(url).split("+", 1)[0])
    if opener is None:
        raise ConfigError(f"FLOWKIT_DATABASE_URL is {mask(url)}; write {STORES.examples()}")
    return opener(url, clock or SystemClock(), check, create)
