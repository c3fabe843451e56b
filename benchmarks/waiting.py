"""Handlers that wait for the network: the messages that one worker finishes, and whether its heartbeats continue."""

import asyncio
import logging
import threading
import time
from typing import Any

from benchmarks.contender import DEADLINE_SECONDS, Lost, equal
from benchmarks.cpu import Meter
from benchmarks.database import Database
from benchmarks.worker import Site
from flowkit import App

CONCURRENCY = 500
WAIT_SECONDS = 0.1
HEARTBEAT_SECONDS = 2
LOOK_SECONDS = 0.1


class Losses(logging.Handler):
    """Counts what the broker's connections say: they are silent while they are well."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


def waiting(database: Database, count: int) -> dict[str, float]:
    """500 `async def` handlers at once, each waiting 100 ms; the broker asks for a heartbeat every 2 s."""
    place = database.fresh()
    broker = f"{place.broker}?heartbeat={HEARTBEAT_SECONDS}" if place.broker else ""
    app, losses = _app(), Losses()
    site = Site(place._replace(broker=broker), app)
    store = site.services.store
    app.publish_many("calls", range(count))
    site.settle()
    logging.getLogger("flowkit.rabbitmq").addHandler(losses)
    silence = 0.0
    meter = Meter(place.servers.values())
    worker = site.worker(lambda items: None)
    thread = threading.Thread(target=worker.run)
    end = time.monotonic() + DEADLINE_SECONDS
    thread.start()
    try:
        while left := store.ledger.unfinished(list(app.flows)):
            if time.monotonic() > end:
                raise Lost(f"{left} of {count} are not at their end after {DEADLINE_SECONDS} s")
            silence = max([silence, *(one.silent for one in store.ledger.workers())])
            time.sleep(LOOK_SECONDS)
        usage = meter.read()
    finally:
        worker.stop()
        thread.join()
        logging.getLogger("flowkit.rabbitmq").removeHandler(losses)
    balance: Any = store.ledger.balances()["bench.call"]
    site.close()
    equal("applied", balance.applied, count)
    return {
        "messages_per_second": round(count / usage.wall),
        "worker_cpu_us_per_message": round(usage.worker / count * 1e6, 1),
        "longest_silence_seconds": round(silence, 2),
        "lost_connections": losses.count,
    }


def _app() -> App:
    app = App("bench")

    @app.flow(app.channel("calls", int), concurrency=CONCURRENCY)
    async def call(number: int) -> None:
        await asyncio.sleep(WAIT_SECONDS)

    return app
