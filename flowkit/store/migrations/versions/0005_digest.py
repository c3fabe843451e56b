"""The digest of the body of each id in the inbox, and a counter of ids that were reused with another body."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the columns. Existing inbox rows have no digest: any body with their id counts as the same one."""
    op.add_column("flowkit_inbox", sa.Column("digest", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("flowkit_counters", sa.Column("reused", sa.BigInteger, nullable=False, server_default=sa.text("0")))
