"""FlowKit's side: one worker with its threads, in this process."""

import threading
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import text

from benchmarks.cpu import Meter
from benchmarks.work import Base, Order, Style, bench_app
from flowkit.config import Settings, connect, open_store
from flowkit.engine.item import Item
from flowkit.engine.worker import Worker
from flowkit.ports import Done

DEADLINE_SECONDS = 600


class FlowKit:
    """Empties the store of a URL and works on it."""

    name = "FlowKit"

    def __init__(self, url: str, style: Style, database: int | None) -> None:
        self._style = style
        self._database = database
        store = open_store(Settings(database_url=url), check=False)
        store.upgrade()
        with store.transaction() as unit:
            for table in ("messages", "inbox", "counters", "dead", "workers"):
                unit.write(f"DELETE FROM flowkit_{table}", [()])
        Base.metadata.drop_all(store.dialect.engine)
        Base.metadata.create_all(store.dialect.engine)
        store.close()
        self._app = bench_app(style)
        self._services = connect(Settings(database_url=url))
        self._store: Any = self._services.store
        self._app.connect(self._services)
        self._worker = Worker(self._app, self._services, self._app.select(["work"]))
        self._worker.lanes[0].pipeline.observe = self._observe
        self._latencies: list[float] = []
        self._done = threading.Event()
        self._count = self._wanted = 0

    def send(self, orders: list[Order]) -> None:
        """Publish, 500 to a transaction."""
        self._app.publish_many("orders", orders)

    def run(self, count: int) -> tuple[float, float, float]:
        """Do so many. Returns seconds of wall time, own CPU and the database's."""
        self._work(count)
        return self._read

    def latencies(self, count: int) -> list[float]:
        """Seconds from when each order was meant to be sent until it was committed."""
        self._work(count)
        return self._latencies

    def check(self, count: int) -> None:
        """Fail unless everything took effect exactly once and the ledger balances."""
        balances = self._store.ledger.balances()
        assert all(one.balanced for one in balances.values()), balances
        assert balances["bench.work"][:2] == (count, count), balances
        assert balances["bench.after"].pending == count, balances
        with self._store.dialect.engine.connect() as connection:
            rows = connection.execute(text("SELECT count(*) FROM bench_rows")).scalar()
        assert rows == (0 if self._style == "none" else count)

    def close(self) -> None:
        self._services.close()

    def _work(self, count: int) -> None:
        self._wanted = count
        meter = Meter(self._database)
        thread = threading.Thread(target=self._worker.run)
        thread.start()
        finished = self._done.wait(DEADLINE_SECONDS)
        self._read = meter.read()
        self._worker.stop()
        thread.join()
        assert finished, f"{self._count} of {count} after {DEADLINE_SECONDS} s"

    def _observe(self, items: Sequence[Item]) -> None:
        now = time.time()
        for item in items:
            if isinstance(item.outcome, Done):
                self._count += 1
                if isinstance(item.body, Order) and item.body.at:
                    self._latencies.append(now - item.body.at)
        if self._count >= self._wanted:
            self._done.set()
