"""An index of the inbox by age that stays fast while retention removes rows and new ones take their place.

Every transaction on the inbox waits while PostgreSQL builds the index: seconds for each ten million rows.
"""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Replace the index on PostgreSQL. On SQLite the first one is of this kind already."""
    if op.get_bind().dialect.name == "postgresql":
        op.drop_index("flowkit_inbox_changed", "flowkit_inbox")
        op.create_index("flowkit_inbox_changed", "flowkit_inbox", ["changed"])
