"""Alembic runs this module: it migrates on the connection that `upgrade` passes."""

from alembic import context

from flowkit.store import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.metadata,
    version_table=tables.version.name,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
