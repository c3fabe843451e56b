"""Tables of directions, uptime and rollouts; columns for groups, sites, versions and figures of workers."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the tables empty, and add the columns without a group or version."""
    op.create_table(
        "flowkit_directions",
        sa.Column("what", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.Column("since", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "flowkit_uptime",
        sa.Column("app", sa.Text, primary_key=True),
        sa.Column("since", sa.BigInteger, primary_key=True),
        sa.Column("until", sa.BigInteger, nullable=False),
    )
    op.add_column("flowkit_leases", sa.Column("token", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.create_index("flowkit_leases_token", "flowkit_leases", ["name", "holder", "token"], unique=True)
    for name in ("team", "site", "version"):
        op.add_column("flowkit_workers", sa.Column(name, sa.Text, nullable=False, server_default=sa.text("''")))
    for name in ("epoch", "handled", "failed", "p99"):
        op.add_column("flowkit_workers", sa.Column(name, sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.add_column("flowkit_dead", sa.Column("version", sa.Text, nullable=False, server_default=sa.text("''")))
    op.create_table(
        "flowkit_rollouts",
        sa.Column("app", sa.Text, primary_key=True),
        sa.Column("baseline", sa.Text, nullable=False),
        sa.Column("candidate", sa.Text, nullable=False),
        sa.Column("weight", sa.SmallInteger, nullable=False),
        sa.Column("before", sa.SmallInteger, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("since", sa.BigInteger, nullable=False),
        sa.Column("began", sa.BigInteger, nullable=False),
    )
