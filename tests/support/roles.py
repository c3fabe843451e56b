"""Roles of PostgreSQL: what an administrator grants to a worker."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from flowkit.services import open_store
from flowkit.settings import Settings
from tests.support import ROOT
from tests.support.shop import Base

GRANTS = (ROOT / "docs" / "guides" / "postgresql.md").read_text().split("```sql\n")[1].split("```")[0]


def administer(url: str, *statements: str) -> None:
    """Run statements as the owner of a database; `{name}` is its name."""
    with psycopg.connect(url, autocommit=True) as connection:
        for one in statements:
            connection.execute(sql.SQL(one).format(name=sql.Identifier(connection.info.dbname)))


def prepare(url: str) -> None:
    """Make FlowKit's schema, and the tables of the shop."""
    store = open_store(Settings(database_url=url), check=False)
    with closing(store):
        store.schema.upgrade()
        Base.metadata.create_all(store.dialect.engine)


@contextmanager
def role_of(url: str) -> Iterator[str]:
    """A role with the rights that docs/guides/postgresql.md grants to a worker, and no more. Yields its URL."""
    prepare(url)
    granted = GRANTS.replace("shop_tables", ", ".join(Base.metadata.tables)).replace("shop", "worker")
    administer(url, "CREATE ROLE worker LOGIN PASSWORD 'secret'", granted)
    try:
        yield str(make_url(url).set(username="worker", password="secret").render_as_string(hide_password=False))
    finally:
        administer(url, "DROP OWNED BY worker", "DROP ROLE worker")
