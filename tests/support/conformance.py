"""Opens what the conformance kit tests."""

from typing import Any

import pytest

from flowkit.services import open_store
from flowkit.settings import Settings


def opened(url: str) -> Any:
    store = open_store(Settings(database_url=url), check=False)
    store.schema.upgrade()
    return store


class OnUrl:
    """Opens what is tested once the fixture has made its database."""

    url: str

    def setup_method(self) -> None:
        """Done by the fixture."""

    def begin(self, url: str) -> None:
        self.url = url
        super().setup_method()  # type: ignore[misc]


class OnSqlite(OnUrl):
    @pytest.fixture(autouse=True)
    def _sqlite(self, sqlite_url: str) -> None:
        self.begin(sqlite_url)


class OnPostgresql(OnUrl):
    @pytest.fixture(autouse=True)
    def _postgresql(self, postgresql_url: str) -> None:
        self.begin(postgresql_url)
