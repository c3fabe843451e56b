"""An index of the inbox by age that stays quick as rows are forgotten, and others take their place.

All who use the inbox wait while PostgreSQL builds it: seconds for each ten million rows.
"""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """SQLite has it already: there the first one was of this kind."""
    if op.get_bind().dialect.name == "postgresql":
        op.drop_index("flowkit_inbox_changed", "flowkit_inbox")
        op.create_index("flowkit_inbox_changed", "flowkit_inbox", ["changed"])
