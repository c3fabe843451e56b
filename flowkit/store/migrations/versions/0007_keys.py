"""Messages that travel by a broker are signed, with keys of the store."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Workers of the version before do not write `signs`."""
    op.create_table(
        "flowkit_keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("secret", sa.Text, nullable=False),
        sa.Column("made", sa.BigInteger, nullable=False),
        sa.Column("expires", sa.BigInteger),
    )
    op.add_column("flowkit_workers", sa.Column("signs", sa.SmallInteger, nullable=False, server_default=sa.text("0")))
