"""A table of its own for replies to requests."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create the table. Earlier replies, which are objects, are not used any more: their keys could name the reply to
    another request. They expire within a day."""
    op.create_table(
        "flowkit_replies",
        sa.Column("app", sa.Text, primary_key=True),
        sa.Column("route", sa.Text, primary_key=True),
        sa.Column("principal", sa.Text, primary_key=True),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("reply", sa.LargeBinary, nullable=False),
        sa.Column("expires", sa.BigInteger, nullable=False),
    )
    op.create_index("flowkit_replies_expires", "flowkit_replies", ["expires"])
