"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ENVELOPE = [
    ("source", sa.Text, False),
    ("id", sa.Text, False),
    ("channel", sa.Text, False),
    ("body", sa.LargeBinary, False),
    ("type", sa.Text, False),
    ("key", sa.Text, True),
    ("time", sa.BigInteger, False),
    ("correlation", sa.Text, True),
    ("causation", sa.Text, True),
    ("headers", sa.Text, True),
]


def envelope() -> list[sa.Column[object]]:
    """The columns of a message."""
    return [sa.Column(name, kind, nullable=nullable) for name, kind, nullable in ENVELOPE]


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "flowkit_meta",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "flowkit_messages",
        sa.Column("copy", sa.Text, primary_key=True),
        sa.Column("flow", sa.Text, nullable=False),
        *envelope(),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("deliveries", sa.Integer, nullable=False),
        sa.Column("staged", sa.BigInteger, nullable=False),
        sa.Column("due", sa.BigInteger, nullable=False),
        sa.Column("worker", sa.Text),
        sa.Column("parked", sa.Text),
        sqlite_with_rowid=False,
    )
    op.create_index("flowkit_messages_due", "flowkit_messages", ["flow", "due"])
    op.create_table(
        "flowkit_inbox",
        sa.Column("flow", sa.Text, primary_key=True),
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("suspect", sa.SmallInteger, nullable=False),
        sa.Column("venture", sa.Text),
        sa.Column("changed", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("flowkit_inbox_changed", "flowkit_inbox", ["changed"], postgresql_using="brin")
    op.create_table(
        "flowkit_dead",
        sa.Column("letter", sa.Text, primary_key=True),
        sa.Column("flow", sa.Text, nullable=False),
        *envelope(),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("died", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("stack", sa.Text, nullable=False),
    )
    op.create_index("flowkit_dead_flow", "flowkit_dead", ["flow", "error"])
    op.create_index("flowkit_dead_died", "flowkit_dead", ["died"])
    op.create_table(
        "flowkit_subscriptions",
        sa.Column("flow", sa.Text, primary_key=True),
        sa.Column("channel", sa.Text, nullable=False),
        sa.Column("seen", sa.BigInteger, nullable=False),
    )
    op.create_index("flowkit_subscriptions_channel", "flowkit_subscriptions", ["channel"])
    op.create_table(
        "flowkit_counters",
        sa.Column("flow", sa.Text, primary_key=True),
        sa.Column("lane", sa.Text, primary_key=True),
        *(
            sa.Column(name, sa.BigInteger, nullable=False, server_default=sa.text("0"))
            for name in ("accepted", "applied", "dead", "discarded", "expired")
        ),
    )
    op.create_table(
        "flowkit_objects",
        sa.Column("space", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("expires", sa.BigInteger),
    )
    op.create_index("flowkit_objects_expires", "flowkit_objects", ["expires"])
    op.create_table(
        "flowkit_workers",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("app", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("started", sa.BigInteger, nullable=False),
        sa.Column("heartbeat", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("locked", sa.SmallInteger, nullable=False),
    )
    op.create_table(
        "flowkit_leases",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("until", sa.BigInteger, nullable=False),
    )
