"""The migrations of the schema, run by `flowkit db upgrade`. They expand before they contract: a running worker of the
version before goes on working."""

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, inspect

from flowkit.store import tables


def upgrade(connection: Connection, ids: Callable[[], str]) -> None:
    """Bring the schema to this version; a store has an id and keys then. Blocks; raises what the database refuses."""
    has = inspect(connection)
    is_unsigned = has.has_table(tables.meta.name) and not has.has_table(tables.keys.name)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    made = [("store", ids), ("key", tables.new_key)]
    if is_unsigned:  # messages of the version before may be at a broker
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
