"""Signing keys of the store, for messages that travel by a broker."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Create the table, and add `signs`, which workers of an older version leave at 0."""
    op.create_table(
        "flowkit_keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("secret", sa.Text, nullable=False),
        sa.Column("made", sa.BigInteger, nullable=False),
        sa.Column("expires", sa.BigInteger),
    )
    op.add_column("flowkit_workers", sa.Column("signs", sa.SmallInteger, nullable=False, server_default=sa.text("0")))
