"""Context managers that open the services of the settings for a command. None creates an SQLite file."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flowkit.services import Services, connect, open_store, open_transport
from flowkit.settings import Settings

if TYPE_CHECKING:
    from flowkit.store.sql import SqlStore


@contextmanager
def opened_store(settings: Settings | None = None) -> Iterator["SqlStore"]:
    """Open the store, without a broker. Blocks. Raises ConfigError and StoreUnavailable."""
    store = open_store(settings or Settings.read(), create=False)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def opened_services() -> Iterator[Services]:
    """Open the store and the transport. With a broker, a copy of the store's database is refused. Blocks. Raises
    ConfigError and Unavailable."""
    services = connect(create=False)
    try:
        yield services
    finally:
        services.close()


@contextmanager
def unchecked_services() -> Iterator[Services]:
    """Open the store and the transport, also of a copy of the store's database. Blocks. Raises ConfigError and
    Unavailable."""
    settings = Settings.read()
    with opened_store(settings) as store:
        services = Services(settings, store, open_transport(settings, store))
        try:
            yield services
        finally:
            services.transport.close()
