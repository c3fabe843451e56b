"""The naive loop: the same reliable work by hand, one message at a time, as a careful programmer would write it.

It has one process, one connection, one cursor, and one transaction for each message: claim a row, validate it, write
the inbox row, the business row and the onward row, delete the claimed row, commit. Its statements go directly to the
driver, which prepares them once. A session on the same connection writes the business row, as the compared handler
does. Durability is that of FlowKit's store, whose engine opens the connection.
"""

import gc
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from benchmarks.contender import DEADLINE_SECONDS, Lost, Place, equal
from benchmarks.cpu import Meter, Usage
from benchmarks.work import INSERT, Base, Order, Row, Style
from flowkit.services import open_store
from flowkit.settings import Settings

POLL_SECONDS = 0.001
TABLES = {
    "sqlite": (
        "CREATE TABLE IF NOT EXISTS naive_queue (number INTEGER PRIMARY KEY, flow text NOT NULL, id text NOT NULL, "
        "body blob NOT NULL)",
        "CREATE INDEX IF NOT EXISTS naive_queue_flow ON naive_queue (flow, number)",
        "CREATE TABLE IF NOT EXISTS naive_inbox (flow text, id text, PRIMARY KEY (flow, id)) WITHOUT ROWID",
    ),
    "postgresql": (
        "CREATE TABLE IF NOT EXISTS naive_queue (number bigserial PRIMARY KEY, flow text NOT NULL, id text NOT NULL, "
        "body bytea NOT NULL)",
        "CREATE INDEX IF NOT EXISTS naive_queue_flow ON naive_queue (flow, number)",
        "CREATE TABLE IF NOT EXISTS naive_inbox (flow text, id text, PRIMARY KEY (flow, id))",
    ),
}
CLAIM = "SELECT number, id, body FROM naive_queue WHERE flow = 'work' ORDER BY number LIMIT 1"
ENQUEUE = "INSERT INTO naive_queue (flow, id, body) VALUES (?, ?, ?)"
RECEIVE = "INSERT INTO naive_inbox (flow, id) VALUES ('work', ?) ON CONFLICT DO NOTHING"
REMOVE = "DELETE FROM naive_queue WHERE number = ?"


class Naive:
    """Makes its tables in an empty database."""

    name = "naive loop"

    def __init__(self, place: Place, style: Style) -> None:
        self._style = style
        self._servers = place.servers.values()
        self.committed = 0.0
        """When the last effects were committed."""
        self._store: Any = open_store(Settings(database_url=place.database), check=False)
        engine = self._store.dialect.engine
        self._connection = engine.connect()
        driver: Any = self._connection.connection.driver_connection
        self._cursor: Any = driver.cursor()
        self._session = Session(bind=self._connection)
        for statement in TABLES[engine.dialect.name]:
            self._cursor.execute(statement)
        Base.metadata.create_all(engine)
        sqlite = engine.dialect.name == "sqlite"
        mark = "?" if sqlite else "%s"
        self._begin = "BEGIN IMMEDIATE" if sqlite else "BEGIN"
        self._claim = CLAIM if sqlite else f"{CLAIM} FOR UPDATE SKIP LOCKED"
        self._enqueue, self._receive, self._remove = (one.replace("?", mark) for one in (ENQUEUE, RECEIVE, REMOVE))

    def send(self, orders: Sequence[Order]) -> None:
        cursor = self._cursor
        cursor.execute(self._begin)
        cursor.executemany(self._enqueue, [("work", *named(order)) for order in orders])
        cursor.execute("COMMIT")
        cursor.execute("ANALYZE")

    def run(self, count: int) -> Usage:
        gc.collect()
        meter = Meter(self._servers)
        for done in range(count):
            if self.step() is None:
                raise Lost(f"the queue of the {self.name} was empty after {done} of {count}")
        return meter.read()

    def latencies(self, count: int) -> list[float]:
        found: list[float] = []
        end = time.monotonic() + DEADLINE_SECONDS
        while len(found) < count:
            order = self.step()
            if order is not None:
                found.append(self.committed - order.at)
            elif time.monotonic() < end:
                time.sleep(POLL_SECONDS)
            else:
                raise Lost(f"the {self.name} got {len(found)} of {count} in {DEADLINE_SECONDS} s")
        return found

    def check(self, count: int) -> None:
        for query, wanted in (
            ("SELECT count(*) FROM naive_inbox WHERE flow = 'work'", count),
            ("SELECT count(DISTINCT id) FROM naive_queue WHERE flow = 'after'", count),
            ("SELECT count(*) FROM naive_queue", count),
            ("SELECT count(*) FROM bench_rows", 0 if self._style == "none" else count),
        ):
            equal(query, self._cursor.execute(query).fetchone()[0], wanted)

    def close(self) -> None:
        self._session.close()
        self._connection.close()
        self._store.close()

    def step(self) -> Order | None:
        """One message, if there is one."""
        execute = self._cursor.execute
        execute(self._begin)
        execute(self._claim)
        row = self._cursor.fetchone()
        if row is None:
            execute("ROLLBACK")
            return None
        number, id, body = row
        order = Order.model_validate_json(body)
        execute(self._receive, (id,))
        if self._cursor.rowcount:
            self._write(order)
            execute(self._enqueue, ("after", *named(order)))
        execute(self._remove, (number,))
        execute("COMMIT")
        self.committed = time.time()
        return order

    def _write(self, order: Order) -> None:
        """The business row, in the style of the handlers it is compared with."""
        if self._style == "add":
            self._session.add(Row(id=order.id, total=order.total))
            self._session.flush()
            self._session.expunge_all()
        elif self._style == "statement":
            self._session.execute(INSERT, {"id": order.id, "total": order.total})


def named(order: Order) -> tuple[str, bytes]:
    """A message's id and body."""
    return f"order-{order.id}", order.model_dump_json().encode()
