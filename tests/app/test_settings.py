"""Settings that are wrong are named, without their secrets."""

import pytest

from flowkit import (
    FlowKitError,
    StoreUnavailable,
)
from flowkit.errors import ConfigError
from flowkit.services import connect, open_store
from flowkit.settings import Settings
from flowkit.store.tables import VERSION
from flowkit.url import mask
from tests.services.postgresql import PostgreSQL


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://h/d", "write sqlite:///path/to/file.db or"),
        ("nonsense", "write sqlite:///path/to/file.db or"),
        ("sqlite:////no/such/folder/x.db", "folder /no/such/folder does not exist"),
        ("sqlite:////dev", "cannot be used as a store"),
        ("sqlite:////proc/self/x.db", "cannot be used as a store"),
        ("postgresql://u:hidden-secret@127.0.0.1:1/d", "cannot be reached"),
    ],
)
def test_a_wrong_url_is_named_without_its_password(url: str, message: str) -> None:
    with pytest.raises((ConfigError, StoreUnavailable), match=message) as refused:
        connect(Settings(database_url=url))
    assert "FLOWKIT_DATABASE_URL" in str(refused.value)
    assert "hidden-secret" not in str(refused.value)


def test_a_wrong_password_database_or_schema_is_named(postgresql: PostgreSQL, postgresql_url: str) -> None:
    name = postgresql_url.rsplit("/", 1)[1]
    with pytest.raises(FlowKitError, match="password authentication failed") as refused:
        connect(Settings(database_url=f"postgresql://flowkit:hidden-secret@127.0.0.1:{postgresql.port}/{name}"))
    assert "hidden-secret" not in str(refused.value)
    with pytest.raises(FlowKitError, match="does not exist"):
        connect(Settings(database_url=postgresql.url("missing")))
    with pytest.raises(ConfigError, match=r"has no FlowKit schema.*flowkit db upgrade"):
        connect(Settings(database_url=postgresql_url))
    store = open_store(Settings(database_url=postgresql_url), check=False)
    store.schema.upgrade()
    with store.transaction() as unit:
        unit.write("UPDATE flowkit_version SET version_num = '0000'", [()])
    store.close()
    with pytest.raises(
        ConfigError, match=rf"has FlowKit schema 0000, and this version needs {VERSION}; run: flowkit db upgrade"
    ):
        connect(Settings(database_url=postgresql_url))


def test_a_database_that_may_lose_commits_is_refused(postgresql_url: str) -> None:
    store = open_store(Settings(database_url=postgresql_url), check=False)
    name = postgresql_url.rsplit("/", 1)[1]
    with store.transaction() as unit:
        unit.write(f"ALTER DATABASE {name} SET synchronous_commit = off", [()])
    store.close()
    with pytest.raises(ConfigError, match="synchronous_commit = off"):
        connect(Settings(database_url=postgresql_url))


@pytest.mark.parametrize(("name", "value"), [("THREADS", "0"), ("THREADS", "many"), ("LEASE", "-1"), ("LEASE", "")])
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"FLOWKIT_{name}", value)
    with pytest.raises(ConfigError, match=f"FLOWKIT_{name}"):
        Settings.read()


def test_a_broker_that_this_version_cannot_speak_to_is_refused(sqlite_url: str) -> None:
    with pytest.raises(ConfigError, match=r"FLOWKIT_BROKER_URL is redis://u:\*\*\*@h/"):
        connect(Settings(database_url=sqlite_url, broker_url="redis://u:secret@h/"))


@pytest.mark.parametrize("secret", ["plain", "with%40at", "p:q", "s/l", "ü"])
def test_passwords_are_masked(secret: str) -> None:
    shown = mask(f"postgresql://user:{secret}@host/db?password={secret}")
    assert secret not in shown.replace("postgresql://user", "")
    assert mask("sqlite:///flowkit.db") == "sqlite:///flowkit.db"
