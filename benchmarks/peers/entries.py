"""The contenders of each contest, and their settings."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.peers.part import Work
from benchmarks.work import STYLES, Style


@dataclass(frozen=True)
class Entry:
    """A contender, and what it is set to."""

    name: str
    module: str
    count: int
    """Messages of a run: those of some seconds."""
    work: Work = "reliable"
    style: Style = "none"
    shape: str = ""
    quorum: bool = True

    @property
    def title(self) -> str:
        if self.work == "no-op":
            return f"{self.name}: no-op"
        return f"{self.name}: {self.style}"


@dataclass(frozen=True)
class Contest:
    """Entries that take turns on the same servers."""

    name: str
    database: str
    """As the benchmarks name it."""
    entries: Sequence[Entry]
    reference: str
    """The title of the entry that ratios are taken to, within each round."""


def flowkit(count: int, styles: Sequence[Style] = STYLES) -> list[Entry]:
    return [Entry("FlowKit", "flowkit", count, style=style) for style in styles]


# Classic queues where a peer's own are classic: they confirm without an fsync, which is to the peer's advantage.
BROKER_PEERS = (
    ("Celery, 8 threads", "celery", "threads 8", 6_000),
    ("Celery, 8 processes", "celery", "prefork 8", 6_000),
    ("Dramatiq, 8 threads", "dramatiq", "8", 8_000),
    ("FastStream, 30 at once", "faststream", "30", 8_000),
)
RABBITMQ = Contest(
    "RabbitMQ + PostgreSQL",
    "rabbitmq",
    [
        *flowkit(30_000),
        *(Entry("by hand, batches of 100", "floor", 30_000, style=style) for style in ("none", "statement")),
        *(Entry("by hand, one by one", "naive", 3_000, style=style) for style in ("none", "statement")),
        *(
            Entry(name, module, count // 2, style=style, shape=shape, quorum=False)
            for name, module, shape, count in BROKER_PEERS
            for style in ("none", "statement")
        ),
        *(
            Entry(name, module, 2 * count, "no-op", shape=shape, quorum=False)
            for name, module, shape, count in BROKER_PEERS
        ),
    ],
    "by hand, one by one: statement",
)
DATABASE_PEERS = (
    ("Procrastinate, 10 at once", "procrastinate", "10", 1_500),
    ("DBOS, 50 at once", "dbos", "50", 3_000),
    ("awa, 50 at once", "awa", "50", 20_000),
)
POSTGRESQL = Contest(
    "PostgreSQL",
    "postgresql",
    [
        *flowkit(40_000),
        *(Entry("by hand, batches of 100", "floor_queue", 60_000, style=style) for style in ("none", "statement")),
        *(
            Entry(name, module, count, work, shape=shape)
            for name, module, shape, count in DATABASE_PEERS
            for work in ("no-op", "reliable")
        ),
    ],
    "by hand, batches of 100: statement",
)
SQLITE = Contest(
    "SQLite",
    "sqlite",
    [*flowkit(40_000), *(Entry("huey, 2 threads", "huey", 8_000, work, shape="2") for work in ("no-op", "reliable"))],
    "huey, 2 threads: no-op",
)
CONTESTS = (RABBITMQ, POSTGRESQL, SQLITE)
LATENCY = [
    Entry("FlowKit, from the broker", "flowkit", 0, style="statement", shape="from the broker"),
    Entry("FlowKit, app.publish", "flowkit", 0, style="statement"),
    Entry("by hand, batches of 100", "floor", 0, style="statement"),
    Entry("by hand, one by one", "naive", 0, style="statement"),
    *(Entry(name, module, 0, style="statement", shape=shape) for name, module, shape, _ in BROKER_PEERS),
]
"""All on quorum queues."""
