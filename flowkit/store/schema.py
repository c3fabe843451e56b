"""Creates, checks and upgrades the schema of a store, and checks the tables of an app."""

from sqlalchemy import Connection, MetaData, inspect, select
from sqlalchemy.engine.reflection import ObjectKind

from flowkit.errors import ConfigError, StoreOutdated
from flowkit.store import tables
from flowkit.store.database import Database


class Schema:
    """The tables of a database. Every call blocks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def make(self) -> None:
        """Create the schema, or upgrade it to this version. Safe if several processes start at once."""
        with self._database.dialect.engine.connect() as connection:
            known = _version(connection)
            if known is None:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                if _version(connection) is None:
                    tables.metadata.create_all(connection)
                    connection.execute(tables.version.insert().values(version_num=tables.VERSION))
                    made = {"store": self._database.ids(), "oldest": tables.OLDEST, "key": tables.new_key()}
                    connection.execute(tables.keys.insert(), tables.first_key())
                    connection.execute(
                        tables.meta.insert(), [{"name": name, "value": value} for name, value in made.items()]
                    )
                connection.exec_driver_sql("COMMIT")
        if known is not None and known < tables.VERSION:
            self.upgrade()
        self.check()

    def check(self) -> None:
        """Raise ConfigError unless the schema is of this version, or of a later one that this code supports. Raises
        StoreOutdated on SQLite, where a run upgrades an older schema."""
        try:
            with self._database.dialect.engine.connect() as connection:
                known = _version(connection)
                fits = known == tables.VERSION or (known or "") > tables.VERSION >= _oldest(connection)
        except Exception as error:
            raise self._database.classify(error, own=True) from error
        if not fits:
            has = "has no FlowKit schema" if known is None else f"has FlowKit schema {known}"
            self._database.close()
            raise (StoreOutdated if self._database.dialect.serial and (known or "") < tables.VERSION else ConfigError)(
                f"the database of FLOWKIT_DATABASE_URL {has}, and this version needs {tables.VERSION}; "
                "run: flowkit db upgrade"
            )

    def upgrade(self) -> str:
        """Run the migrations; wait for another process that does. Returns the version reached. Raises ConfigError if
        the database refuses them."""
        from flowkit.store.migrations import upgrade

        with self._database.dialect.upgrading() as connection:
            upgrade(connection, self._database.ids)
        return tables.VERSION

    def create_tables(self, metadata: object) -> None:
        if isinstance(metadata, MetaData) and self._database.dialect.name == "sqlite":
            try:
                with self._database.dialect.engine.connect() as connection:
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                    metadata.create_all(connection)
                    connection.exec_driver_sql("COMMIT")
            except Exception as error:
                raise self._database.classify(error) from error

    def check_tables(self, app: str, metadata: object) -> None:
        """Raise ConfigError if a table of an app is missing and FlowKit does not create it, or lacks a column: every
        message that writes there would fail."""
        if not isinstance(metadata, MetaData):
            return
        try:
            with self._database.dialect.engine.connect() as connection:
                found = _columns(connection, metadata)
        except Exception as error:
            raise self._database.classify(error, own=True) from error
        missing = [one.fullname for one in metadata.sorted_tables if one.fullname not in found]
        if missing and self._database.dialect.name != "sqlite":
            raise ConfigError(
                f"app {app} has tables that are not in the database of FLOWKIT_DATABASE_URL: {', '.join(missing)}; "
                "create them by your migrations, or by metadata.create_all(engine): FlowKit creates them only on SQLite"
            )
        fold = str.lower if self._database.dialect.name == "sqlite" else str  # SQLite ignores case
        lacking = [
            f"{table.fullname}.{column.name}"
            for table in metadata.sorted_tables
            for column in table.columns
            if table.fullname in found
            and not column.system
            and fold(column.name) not in map(fold, found[table.fullname])
        ]
        if lacking:
            raise ConfigError(
                f"app {app} has columns that are not in the database of FLOWKIT_DATABASE_URL: {', '.join(lacking)}; "
                "add them by your migrations (ALTER TABLE … ADD COLUMN …): FlowKit changes no existing table"
            )


def _columns(connection: Connection, metadata: MetaData) -> dict[str, set[str]]:
    """Return full name -> column names, for the existing tables and views of an app."""
    look, found = inspect(connection), {}
    for schema in {table.schema for table in metadata.sorted_tables}:
        names = {table.name: table.fullname for table in metadata.sorted_tables if table.schema == schema}
        columns = look.get_multi_columns(schema, filter_names=list(names), kind=ObjectKind.ANY)
        for (_, name), those in columns.items():
            found[names[name]] = {one["name"] for one in those}
    return found


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(tables.version.name):
        return None
    found = connection.execute(tables.version.select()).scalar()
    return None if found is None else str(found)


def _oldest(connection: Connection) -> str:
    """Return the oldest version whose code supports this schema."""
    found = connection.execute(select(tables.meta.c.value).where(tables.meta.c.name == "oldest")).scalar()
    return str(found or tables.VERSION)
