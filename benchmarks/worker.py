"""FlowKit as a contender: one worker with its pool of threads, in this process."""

import gc
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.contender import DEADLINE_SECONDS, Lost, Place, equal
from benchmarks.cpu import Meter, Usage
from benchmarks.work import Order, Style, bench_app
from flowkit import App
from flowkit.engine.item import Item
from flowkit.engine.relay import Relay
from flowkit.engine.worker import Worker
from flowkit.ports import Done
from flowkit.services import connect, open_store
from flowkit.settings import Settings
from flowkit.telemetry.port import OFF, Telemetry

INBOX = "SELECT count(*) FROM flowkit_inbox WHERE flow = 'bench.work' AND state = 1"
ONWARD = "SELECT count(DISTINCT causation) FROM flowkit_messages WHERE flow = 'bench.after'"
ROWS = "SELECT count(*) FROM flowkit_messages"


class Site:
    """An app at a place, whose schema and queues it makes. It has no worker before there is something to measure: what
    is in the queue would begin to come."""

    name = "FlowKit"

    def __init__(self, place: Place, app: App, flows: Sequence[str] = (), telemetry: Telemetry = OFF) -> None:
        """`flows` are those that are run, if not all."""
        self._place = place
        settings = Settings(database_url=place.database, broker_url=place.broker)
        store = open_store(settings, check=False)
        store.schema.upgrade()
        if app.metadata is not None:
            app.metadata.create_all(store.dialect.engine)
        store.close()
        self.app = app
        self._flows = flows or list(app.flows)
        self.services: Any = connect(settings)._replace(telemetry=telemetry)
        app.connect(self.services)
        self.services.transport.declare(list(app.flows))
        self._latencies: list[float] = []
        self._done = threading.Event()
        self._counting = threading.Lock()
        self._count = self._wanted = 0

    def settle(self) -> None:
        """What was published is in the queues before anything is measured, and the database knows its tables."""
        self.execute("ANALYZE")
        services = self.services
        relay = Relay(services.store, services.transport, services.clock, services.ids())
        while self._place.broker and relay.step():
            """They go to the broker."""

    def execute(self, statement: str) -> Any:
        """Execute a statement of SQL in autocommit, however long it takes. Returns its value, if it has one."""
        with self.services.store.dialect.engine.connect() as connection:
            result = connection.exec_driver_sql(statement)
            return result.scalar() if result.returns_rows else None

    def worker(self, observe: Callable[[Sequence[Item]], None]) -> Worker:
        """A worker, which tells what it has committed."""
        worker = Worker(self.app, self.services, self.app.select(self._flows))
        for lane in worker.lanes:
            lane.pipeline.observe = observe
        return worker

    def run(self, count: int) -> Usage:
        """Run a worker until it has committed so many. Then it finishes, which is not measured."""
        gc.collect()
        self._done.clear()
        self._count, self._wanted = 0, count
        meter = Meter(self._place.servers.values())
        worker = self.worker(self._observe)
        thread = threading.Thread(target=worker.run)
        thread.start()
        finished = self._done.wait(DEADLINE_SECONDS)
        usage = meter.read()
        worker.stop()
        thread.join()
        if not finished:
            raise Lost(f"{self.name} did {self._count} of {count} in {DEADLINE_SECONDS} s")
        return usage

    def close(self) -> None:
        self.services.close()

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


class FlowKit(Site):
    """The flow that does the work."""

    shared = False
    """Whether other programs put messages into its queue."""

    def __init__(self, place: Place, style: Style, telemetry: Telemetry = OFF) -> None:
        super().__init__(place, bench_app(style, self.shared), ["work"], telemetry)
        self._style = style

    def send(self, orders: Sequence[Order]) -> None:
        self.app.publish_many("orders", orders)
        self.settle()

    def latencies(self, count: int) -> list[float]:
        self.run(count)
        return self._latencies

    def check(self, count: int) -> None:
        queued = self.services.transport.depths(["bench.work", "bench.after"])
        waiting = 0 if self._place.broker else count
        for query, wanted in ((INBOX, count), (ONWARD, waiting), (ROWS, waiting)):
            equal(query, self.execute(query), wanted)
        rows = self.execute("SELECT count(*) FROM bench_rows")
        equal("business rows", rows, 0 if self._style == "none" else count)
        equal("onward at the broker", queued["bench.after"], count - waiting)
        for flow, balance in self.services.store.ledger.balances().items():
            balanced = balance._replace(pending=balance.pending + queued[flow]).balanced
            equal(f"whether the ledger of {flow} balances", balanced, True)


class FlowKitFromBroker(FlowKit):
    """The same, for what other programs put into the flow's queue: it enters as the naive loop's messages do."""

    name = "FlowKit, from the broker"
    shared = True
