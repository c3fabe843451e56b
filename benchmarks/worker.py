"""FlowKit's side: one worker with its pool of threads, in this process."""

import gc
import threading
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.contender import DEADLINE_SECONDS, Lost, Place, equal
from benchmarks.cpu import Meter, Usage
from benchmarks.work import Base, Order, Style, bench_app
from flowkit.config import Settings, connect, open_store
from flowkit.engine.item import Item
from flowkit.engine.worker import Worker
from flowkit.ports import Done
from flowkit.telemetry import OFF, Telemetry

INBOX = "SELECT count(*) FROM flowkit_inbox WHERE flow = 'bench.work' AND state = 1"
ONWARD = "SELECT count(DISTINCT causation) FROM flowkit_messages WHERE flow = 'bench.after'"
ROWS = "SELECT count(*) FROM flowkit_messages"


class FlowKit:
    """Makes its schema in an empty database."""

    name = "FlowKit"

    def __init__(self, place: Place, style: Style, telemetry: Telemetry = OFF) -> None:
        self._style = style
        self._place = place
        settings = Settings(database_url=place.database, broker_url=place.broker)
        store = open_store(settings, check=False)
        store.upgrade()
        Base.metadata.create_all(store.dialect.engine)
        store.close()
        self._app = bench_app(style)
        self._services = connect(settings)._replace(telemetry=telemetry)
        self._store: Any = self._services.store
        self._app.connect(self._services)
        self._services.transport.declare(list(self._app.flows))
        self.worker = Worker(self._app, self._services, self._app.select(["work"]))
        for lane in self.worker.lanes:
            lane.pipeline.observe = self._observe
        self._latencies: list[float] = []
        self._done = threading.Event()
        self._counting = threading.Lock()
        self._count = self._wanted = 0

    def send(self, orders: Sequence[Order]) -> None:
        self._app.publish_many("orders", orders)
        with self._store.unit("") as unit:
            unit.read("ANALYZE") if self._place.database.startswith("sqlite") else unit.write("ANALYZE", [()])
            unit.commit()
        while self._place.broker and self.worker.relay.step():
            """They go to the broker before anything is measured."""

    def write(self, statement: str) -> None:
        """Put something into its database beforehand."""
        with self._store.unit("") as unit:
            unit.write(statement, [()])
            unit.commit()

    def run(self, count: int) -> Usage:
        gc.collect()
        return self._work(count)

    def latencies(self, count: int) -> list[float]:
        self._work(count)
        return self._latencies

    def check(self, count: int) -> None:
        queued = self._services.transport.depths(["bench.work", "bench.after"])
        waiting = 0 if self._place.broker else count
        with self._store.unit("") as unit:
            for query, wanted in ((INBOX, count), (ONWARD, waiting), (ROWS, waiting)):
                equal(query, unit.read(query)[0][0], wanted)
            rows = unit.read("SELECT count(*) FROM bench_rows")[0][0]
        equal("business rows", rows, 0 if self._style == "none" else count)
        equal("onward at the broker", queued["bench.after"], count - waiting)
        for flow, balance in self._store.ledger.balances().items():
            balanced = balance._replace(pending=balance.pending + queued[flow]).balanced
            equal(f"whether the ledger of {flow} balances", balanced, True)

    def close(self) -> None:
        self._services.close()

    def _work(self, count: int) -> Usage:
        """Run the worker until it has committed so many. Then it finishes, which is not measured."""
        self._wanted = count
        thread = threading.Thread(target=self.worker.run)
        meter = Meter(self._place.servers.values())
        thread.start()
        finished = self._done.wait(DEADLINE_SECONDS)
        usage = meter.read()
        self.worker.stop()
        thread.join()
        if not finished:
            raise Lost(f"{self.name} did {self._count} of {count} in {DEADLINE_SECONDS} s")
        return usage

    def _observe(self, items: Sequence[Item]) -> None:
        now = time.time()
        with self._counting:
            for item in items:
                if isinstance(item.outcome, Done):
                    self._count += 1
                    if isinstance(item.body, Order) and item.body.at:
                        self._latencies.append(now - item.body.at)
            if self._count >= self._wanted:
                self._done.set()


class FlowKitFromBroker(FlowKit):
    """The same, for what other programs put into the flow's queue: it enters as the naive loop's messages do."""

    name = "FlowKit, from the broker"
