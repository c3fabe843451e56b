"""Stores and transports of installed packages: each is found by the scheme of its URL."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flowkit import App, ConfigError
from flowkit.engine.worker import Worker
from flowkit.services import Services, connect
from flowkit.settings import Settings

PIGEON = """
from flowkit.transports import memory

opened = []


def open_transport(opening):
    opened.append(opening)
    return memory.open_transport(opening)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path that has a package of somebody else, which opens pigeon:// URLs."""
    (tmp_path / "pigeon_transport.py").write_text(PIGEON)
    register(tmp_path, "pigeon_transport", "pigeon = pigeon_transport:open_transport")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("pigeon_transport", None)


def register(folder: Path, name: str, entry: str) -> None:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[flowkit.transports]\n{entry}\n")


@contextmanager
def connected(sqlite_url: str, broker_url: str) -> Iterator[Services]:
    services = connect(Settings(database_url=sqlite_url, broker_url=broker_url), check=False)
    try:
        yield services
    finally:
        services.close()


def test_a_message_travels_by_the_transport_of_an_installed_package(installed: Path, sqlite_url: str) -> None:
    app, seen = App("shop"), list[int]()
    orders = app.channel("orders", int)

    @app.flow(orders)
    def handle(order: int) -> None:
        seen.append(order)

    with connected(sqlite_url, "pigeon://user:secret@loft/") as services:
        worker = Worker(app, services)
        app.publish(orders, 7)
        while worker.step():
            pass
        assert type(services.transport).__name__ == "MemoryTransport"
        opening = sys.modules["pigeon_transport"].opened[0]
        assert (opening.url, opening.setting) == ("pigeon://user:secret@loft/", "FLOWKIT_BROKER_URL")
        worker.close()
    assert seen == [7]


def test_a_url_that_nobody_opens_is_refused_with_all_that_can_be_written(installed: Path, sqlite_url: str) -> None:
    said = r"^FLOWKIT_BROKER_URL is dove://loft/; write amqp://user:password@host/vhost or pigeon://…, or unset it to"
    with pytest.raises(ConfigError, match=said), connected(sqlite_url, "dove://loft/"):
        pass


def test_two_packages_for_one_scheme_are_refused(installed: Path, sqlite_url: str) -> None:
    register(installed, "other_transport", "pigeon = other_transport:open_transport")
    with pytest.raises(ConfigError, match=r"two installed packages open pigeon:// URLs: other_transport:open_tr"):
        connected(sqlite_url, "pigeon://loft/").__enter__()


def test_a_package_that_cannot_be_imported_is_named(installed: Path, sqlite_url: str) -> None:
    register(installed, "dove_transport", "dove = dove_transport:open_transport")
    with pytest.raises(ConfigError, match=r"dove_transport:open_transport, which opens dove:// URLs, cannot be import"):
        connected(sqlite_url, "dove://loft/").__enter__()


def test_a_built_in_scheme_costs_no_search_of_installed_packages() -> None:
    """The search reads the metadata of every package that is installed."""
    program = (
        "import importlib.metadata as metadata; from flowkit.services import STORES, TRANSPORTS; "
        "metadata.entry_points = None; assert TRANSPORTS.find('amqp') and STORES.find('sqlite')"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
