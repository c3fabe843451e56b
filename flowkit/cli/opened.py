"""The services of the settings, open for as long as a command works with them. No SQLite file is made."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flowkit.services import Services, connect, open_store, open_transport
from flowkit.settings import Settings

if TYPE_CHECKING:
    from flowkit.store.sql import SqlStore


@contextmanager
def opened_store(settings: Settings | None = None) -> Iterator["SqlStore"]:
    """The store. No broker is needed."""
    store = open_store(settings or Settings.read(), create=False)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def opened_services() -> Iterator[Services]:
    """The store and the transport. With a broker, a copy of the store's database is refused."""
    services = connect(create=False)
    try:
        yield services
    finally:
        services.close()


@contextmanager
def unchecked_services() -> Iterator[Services]:
    """The same, but a copy is not refused."""
    settings = Settings.read()
    with opened_store(settings) as store:
        services = Services(settings, store, open_transport(settings, store))
        try:
            yield services
        finally:
            services.transport.close()
