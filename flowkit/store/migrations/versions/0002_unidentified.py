"""A counter of messages that came without an id."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add a column to the counters."""
    op.add_column(
        "flowkit_counters", sa.Column("unidentified", sa.BigInteger, nullable=False, server_default=sa.text("0"))
    )
