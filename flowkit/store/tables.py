"""The schema. Times are in microseconds since the epoch by the database's clock; names have 255 characters at most."""

from secrets import token_hex

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, SmallInteger, Table, Text, text

VERSION = "0007"
"""The revision of the migration that results in this schema."""
OLDEST = "0001"
"""The oldest revision whose code works on this schema: later migrations only added what it does not need."""
SIGNING = "0007"
"""The first revision whose code signs messages. Once signatures are required, the store refuses older code."""
UNSIGNED = "unsigned"
"""The name in `flowkit_meta` of the time until which unsigned messages are accepted. The value is empty before the
first process that signs. A store that this version created has no such row."""
RETENTION = "retention:"
"""The prefix of an app's name in `flowkit_meta`, for its App(retention=) in microseconds. Only with a broker."""

OPEN, DONE, DEAD = 0, 1, 2
"""States of an inbox row."""
STATES = {OPEN: "accepted", DONE: "applied", DEAD: "dead"}
"""State -> its name."""

metadata = MetaData()


def _envelope() -> list[Column[object]]:
    """The columns of a message."""
    return [
        Column("source", Text, nullable=False),
        Column("id", Text, nullable=False),
        Column("channel", Text, nullable=False),
        Column("body", LargeBinary, nullable=False),
        Column("type", Text, nullable=False),
        Column("key", Text),
        Column("time", BigInteger, nullable=False),
        Column("correlation", Text),
        Column("causation", Text),
        Column("headers", Text),
    ]


version = Table("flowkit_version", metadata, Column("version_num", Text, primary_key=True))


def new_key() -> str:
    """Return a new secret of a store, as hexadecimal text: its token key or a signing key."""
    return token_hex(32)


def first_key() -> dict[str, object]:
    """Return the first signing key of a store, as a row. Its time is 0, so that it is older than all others."""
    return {"id": token_hex(8), "secret": new_key(), "made": 0}


meta = Table("flowkit_meta", metadata, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))

# The newest key that all workers know signs the messages for a broker. From `expires` on a key does not verify.
keys = Table(
    "flowkit_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("secret", Text, nullable=False),
    Column("made", BigInteger, nullable=False),
    Column("expires", BigInteger),
)

# One row is one copy: outbox and queue at once. `due` is when it may be leased: the end of a delay or of a lease.
# (copy, deliveries) is the token of a lease, because each lease raises deliveries.
messages = Table(
    "flowkit_messages",
    metadata,
    Column("copy", Text, primary_key=True),
    Column("flow", Text, nullable=False),
    *_envelope(),
    Column("generation", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("deliveries", Integer, nullable=False),
    Column("staged", BigInteger, nullable=False),
    Column("due", BigInteger, nullable=False),
    Column("worker", Text),
    Column("parked", Text),
    Index("flowkit_messages_due", "flow", "due"),
    sqlite_with_rowid=False,
)

inbox = Table(
    "flowkit_inbox",
    metadata,
    Column("flow", Text, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("state", SmallInteger, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("suspect", SmallInteger, nullable=False),
    Column("venture", Text),
    Column("changed", BigInteger, nullable=False),
    Column("digest", Text, nullable=False, server_default=text("''")),
    Index("flowkit_inbox_changed", "changed"),
    sqlite_with_rowid=False,
)

dead = Table(
    "flowkit_dead",
    metadata,
    Column("letter", Text, primary_key=True),
    Column("flow", Text, nullable=False),
    *_envelope(),
    Column("generation", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("died", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("stack", Text, nullable=False),
    Column("version", Text, nullable=False, server_default=text("''")),
    Index("flowkit_dead_flow", "flow", "error"),
    Index("flowkit_dead_died", "died"),
)

subscriptions = Table(
    "flowkit_subscriptions",
    metadata,
    Column("flow", Text, primary_key=True),
    Column("channel", Text, nullable=False),
    Column("seen", BigInteger, nullable=False),
    Index("flowkit_subscriptions_channel", "channel"),
)

# Each lane has its own row, so that lanes never wait for each other. Rows of dead workers are folded into lane ''.
counters = Table(
    "flowkit_counters",
    metadata,
    Column("flow", Text, primary_key=True),
    Column("lane", Text, primary_key=True),
    *(
        Column(name, BigInteger, nullable=False, server_default=text("0"))
        for name in ("accepted", "applied", "dead", "discarded", "expired", "unidentified", "reused")
    ),
)

objects = Table(
    "flowkit_objects",
    metadata,
    Column("space", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", LargeBinary, nullable=False),
    Column("expires", BigInteger),
    Index("flowkit_objects_expires", "expires"),
)

replies = Table(
    "flowkit_replies",
    metadata,
    Column("app", Text, primary_key=True),
    Column("route", Text, primary_key=True),
    Column("principal", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("reply", LargeBinary, nullable=False),
    Column("expires", BigInteger, nullable=False),
    Index("flowkit_replies_expires", "expires"),
)

directions = Table(
    "flowkit_directions",
    metadata,
    Column("what", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
    Column("since", BigInteger, nullable=False),
)
"""The directions that operators set for flows and apps."""

# One row for each period without an outage.
uptime = Table(
    "flowkit_uptime",
    metadata,
    Column("app", Text, primary_key=True),
    Column("since", BigInteger, primary_key=True),
    Column("until", BigInteger, nullable=False),
)
"""The periods in which an app gave at least its minimum service."""

workers = Table(
    "flowkit_workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("app", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started", BigInteger, nullable=False),
    Column("heartbeat", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("locked", SmallInteger, nullable=False),
    *(Column(name, Text, nullable=False, server_default=text("''")) for name in ("team", "site", "version")),
    Column("epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("handled", BigInteger, nullable=False, server_default=text("0")),
    Column("failed", BigInteger, nullable=False, server_default=text("0")),
    Column("p99", BigInteger, nullable=False, server_default=text("0")),
    Column("signs", SmallInteger, nullable=False, server_default=text("0")),
)

rollouts = Table(
    "flowkit_rollouts",
    metadata,
    Column("app", Text, primary_key=True),
    Column("baseline", Text, nullable=False),
    Column("candidate", Text, nullable=False),
    Column("weight", SmallInteger, nullable=False),
    Column("before", SmallInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("began", BigInteger, nullable=False),
)
"""The versions of an app that run side by side. A worker's `epoch` is the last one that it conforms to."""

# The index makes holder and token a key of the row. A fenced commit locks this key with FOR KEY SHARE. On PostgreSQL
# that blocks a takeover, which changes the key, but not a renewal of the lease.
leases = Table(
    "flowkit_leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("until", BigInteger, nullable=False),
    Column("token", BigInteger, nullable=False, server_default=text("0")),
    Index("flowkit_leases_token", "name", "holder", "token", unique=True),
)
