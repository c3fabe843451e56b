"""The schema of a version before."""

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config

import flowkit.store.migrations
from flowkit.services import open_store
from flowkit.settings import Settings
from flowkit.store import tables

MIGRATIONS = sorted((Path(flowkit.store.migrations.__file__).parent / "versions").glob("0*.py"))


def at(url: str, version: str) -> None:
    """Make the schema of a version."""
    store: Any = open_store(Settings(database_url=url), check=False)
    if url.startswith("sqlite"):
        tables.metadata.drop_all(store.dialect.engine)  # which opening it had made
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS[0].parent.parent))
    with store.dialect.engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, version)
        connection.commit()
    store.close()
