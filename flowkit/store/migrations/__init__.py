"""The migrations of the schema, which `flowkit db upgrade` runs. They expand before they contract: running workers of
the previous version continue."""

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, inspect

from flowkit.store import tables


def upgrade(connection: Connection, ids: Callable[[], str]) -> None:
    """Upgrade the schema to this version, and give the store an id and keys. Blocks; raises the database's errors."""
    has = inspect(connection)
    is_unsigned = has.has_table(tables.meta.name) and not has.has_table(tables.keys.name)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    made = [("store", ids), ("key", tables.new_key)]
    if is_unsigned:  # unsigned messages of an older version may be at a broker
        made.append((tables.UNSIGNED, str))
    for name, make in made:
        if connection.execute(tables.meta.select().where(tables.meta.c.name == name)).first() is None:
            connection.execute(tables.meta.insert().values(name=name, value=make()))
    if connection.execute(tables.keys.select()).first() is None:
        connection.execute(tables.keys.insert().values(tables.first_key()))
    oldest = tables.meta.c.name == "oldest"
    if connection.execute(tables.meta.select().where(oldest, tables.meta.c.value >= tables.OLDEST)).first() is None:
        connection.execute(tables.meta.delete().where(oldest))
        connection.execute(tables.meta.insert().values(name="oldest", value=tables.OLDEST))
    connection.commit()
