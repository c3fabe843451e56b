"""Which body has an id in the inbox, and how often another body came under it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Of what is in the inbox already the body is unknown: any other one under its id is taken to be the same."""
    op.add_column("flowkit_inbox", sa.Column("digest", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("flowkit_counters", sa.Column("reused", sa.BigInteger, nullable=False, server_default=sa.text("0")))
