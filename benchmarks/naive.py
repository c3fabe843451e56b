"""The naive loop: the same reliable work by hand, one message at a time, as a careful person would write it.

One process, one connection, one transaction for each message: claim a row, validate, inbox, business row, onward row,
delete, commit. Statements go to the driver, which prepares them; only the business row takes the way that its style
names. Durability is that of FlowKit's store.
"""

import time
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from benchmarks.cpu import Meter
from benchmarks.work import Base, Order, Style, write

POLL_SECONDS = 0.001


class Naive:
    """Opens its own tables on a store's database."""

    name = "naive loop"

    def __init__(self, engine: Engine, style: Style, database: int | None) -> None:
        self._engine = engine
        self._style: Style = style
        self._database = database
        self._connection = engine.connect()
        driver: Any = self._connection.connection.driver_connection
        self._driver = driver
        self._session = Session(bind=self._connection, join_transaction_mode="rollback_only")
        self._sqlite = engine.dialect.name == "sqlite"
        self._marker = "?" if self._sqlite else "%s"
        self._locked = "" if self._sqlite else " FOR UPDATE SKIP LOCKED"
        key = "INTEGER PRIMARY KEY AUTOINCREMENT" if self._sqlite else "bigserial PRIMARY KEY"
        blob = "BLOB" if self._sqlite else "bytea"
        for statement in (
            "DROP TABLE IF EXISTS naive_queue",
            "DROP TABLE IF EXISTS naive_inbox",
            f"CREATE TABLE naive_queue (number {key}, flow text NOT NULL, id text NOT NULL, body {blob} NOT NULL)",
            "CREATE INDEX naive_queue_flow ON naive_queue (flow, number)",
            "CREATE TABLE naive_inbox (flow text, id text, PRIMARY KEY (flow, id))",
        ):
            self._driver.execute(statement)
        Base.metadata.drop_all(engine)
        Base.metadata.create_all(engine)

    def send(self, orders: list[Order]) -> None:
        """Enqueue, in one transaction."""
        statement = f"INSERT INTO naive_queue (flow, id, body) VALUES ('work', {self._marker}, {self._marker})"
        self._begin()
        self._driver.cursor().executemany(
            statement, [(f"order-{order.id}", order.model_dump_json().encode()) for order in orders]
        )
        self._driver.execute("COMMIT")

    def run(self, count: int) -> tuple[float, float, float]:
        """Do so many. Returns seconds of wall time, own CPU and the database's."""
        meter = Meter(self._database)
        for _ in range(count):
            assert self.step() is not None
        return meter.read()

    def latencies(self, count: int) -> list[float]:
        """Seconds from when each order was meant to be sent until it was committed."""
        found: list[float] = []
        while len(found) < count:
            order = self.step()
            if order is None:
                time.sleep(POLL_SECONDS)
            else:
                found.append(time.time() - order.at)
        return found

    def step(self) -> Order | None:
        """One message, if there is one."""
        mark, driver = self._marker, self._driver
        self._begin()
        row = driver.execute(
            f"SELECT number, id, body FROM naive_queue WHERE flow = 'work' ORDER BY number LIMIT 1{self._locked}"
        ).fetchone()
        if row is None:
            driver.execute("ROLLBACK")
            return None
        number, id, body = row
        order = Order.model_validate_json(body)
        fresh = driver.execute(
            f"INSERT INTO naive_inbox (flow, id) VALUES ('work', {mark}) ON CONFLICT DO NOTHING", (id,)
        ).rowcount
        if fresh:
            if self._style != "none":
                write(self._style, order, self._session)
                self._session.flush()
                self._session.expunge_all()
            driver.execute(
                f"INSERT INTO naive_queue (flow, id, body) VALUES ('after', {mark}, {mark})",
                (id, order.model_dump_json().encode()),
            )
        driver.execute(f"DELETE FROM naive_queue WHERE number = {mark}", (number,))
        driver.execute("COMMIT")
        return order

    def check(self, count: int) -> None:
        """Fail unless everything took effect exactly once."""
        rows = 0 if self._style == "none" else count
        for query, wanted in (
            ("SELECT count(*) FROM naive_inbox", count),
            ("SELECT count(*) FROM naive_queue WHERE flow = 'after'", count),
            ("SELECT count(*) FROM naive_queue WHERE flow = 'work'", 0),
            ("SELECT count(*) FROM bench_rows", rows),
        ):
            found = self._driver.execute(query).fetchone()[0]
            assert found == wanted, f"{query}: {found}, not {wanted}"

    def close(self) -> None:
        self._session.close()
        self._connection.close()

    def _begin(self) -> None:
        self._driver.execute("BEGIN IMMEDIATE" if self._sqlite else "BEGIN")
