"""What FlowKit costs when there is much of something: `make bench-scale`.

Each part compares runs of one place, in turns: CPU for each message where it can, for the machines are shared.
"""

import argparse
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contender import DEADLINE_SECONDS, Lost, Place
from benchmarks.cpu import Meter, of_trees
from benchmarks.database import Database, databases
from benchmarks.latency import PERCENTILES
from benchmarks.peers.entries import Entry
from benchmarks.peers.stage import WARM, stage
from benchmarks.work import Order
from benchmarks.worker import FlowKit
from flowkit import App
from flowkit.config import Settings, connect, open_store
from flowkit.engine.worker import Worker

RESULTS = Path(__file__).parent / "results" / "scale.json"
INBOX = (10_000, 1_000_000, 10_000_000)
OUTBOX = (0, 1_000_000)
BACKLOG = 1_000_000
WORKERS = (1, 2, 4)
LOADS = (0.1, 0.5, 0.8)
AT_ONCE = 1e6
"""Messages per second that nobody publishes: all are due from the beginning."""
TAILS = PERCENTILES | {"p99.9": 0.999}
BODIES = {"250 B": 90, "64 KB": 64 * 1024, "1 MB": 1024 * 1024 - 1024}
KNOWN = {
    "sqlite": """
        WITH RECURSIVE given (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM given WHERE number < {count})
        INSERT INTO flowkit_inbox (flow, source, id, state, generation, attempts, suspect, changed)
        SELECT 'bench.work', 'bench', '0000' || lower(hex(randomblob(16))), 1, 0, 0, 0, number FROM given""",
    "postgresql": """
        INSERT INTO flowkit_inbox (flow, source, id, state, generation, attempts, suspect, changed)
        SELECT 'bench.work', 'bench', '0000' || gen_random_uuid(), 1, 0, 0, 0, number
        FROM generate_series(1, {count}) AS number""",
}
"""Messages that were applied before, whose ids lie before those of new ones, as ids of growing times do."""
DELAYED = """
    INSERT INTO flowkit_messages (copy, flow, source, id, channel, body, type, time, generation, attempts, deliveries,
                                  staged, due)
    SELECT 'later-' || number, 'bench.work', 'bench', 'later-' || number, 'orders', '{{}}', 'Order', 0, 0, 0, 0, 0,
           9000000000000000 + number FROM generate_series(1, {count}) AS number"""


app = App("bench")
app.flow(app.channel("orders", int), name="work")(lambda number: None)


class Runs:
    """CPU for each message, and messages per second, of runs that take turns."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[float, float]]] = {}

    def add(self, name: str, cost: float, rate: float) -> None:
        print(f"  {name}: {cost * 1e6:.1f} µs of CPU for each message, {rate:,.0f} messages/s", flush=True)
        self._found.setdefault(name, []).append((cost, rate))

    def results(self) -> dict[str, dict[str, float]]:
        """Medians, and the ratio of the cost to that of the first."""
        costs = {name: statistics.median(cost for cost, _ in found) for name, found in self._found.items()}
        first = next(iter(costs.values()))
        return {
            name: {
                "cpu_us_per_message": round(costs[name] * 1e6, 1),
                "messages_per_second": round(statistics.median(rate for _, rate in found)),
                "cost_ratio": round(costs[name] / first, 2),
            }
            for name, found in self._found.items()
        }


def emptied(database: Database, batches: Iterable[Sequence[Order]], beforehand: str = "") -> tuple[float, float]:
    """A queue is filled with these batches and emptied by one worker, after a statement of SQL: CPU for each message,
    and messages per second."""
    contender, count = FlowKit(database.fresh(), "none"), 0
    try:
        if beforehand:
            contender.write(beforehand)
        for orders in batches:
            contender.send(orders)
            count += len(orders)
        usage = contender.run(count)
    finally:
        contender.close()
    return (usage.worker + usage.servers) / count, count / usage.wall


def batches(count: int, size: int, note: str = "n" * BODIES["250 B"]) -> Iterator[list[Order]]:
    """So many orders, so many at once."""
    for first in range(0, count, size):
        yield [Order(id=number, note=note) for number in range(first, min(first + size, count))]


def filled(database: Database, count: int, rounds: int, rows: Sequence[int], fill: str) -> dict[str, Any]:
    """With so many rows there before. `fill` makes them."""
    runs = Runs()
    for _ in range(rounds):
        for there in rows:
            beforehand = fill.format(count=there) if there else ""
            runs.add(f"{there:,} rows", *emptied(database, batches(count, count), beforehand))
    return runs.results()


def inbox(database: Database, count: int, rounds: int) -> dict[str, Any]:
    """With so many messages that were applied before."""
    return filled(database, count, rounds, INBOX, KNOWN["sqlite" if database.name == "SQLite" else "postgresql"])


def outbox(database: Database, count: int, rounds: int) -> dict[str, Any]:
    """With so many messages that wait for their time."""
    return filled(database, count, rounds, OUTBOX, DELAYED)


def backlog(database: Database, count: int, rounds: int) -> dict[str, Any]:
    """With so many messages in the queue. Once each: the large one is long enough."""
    runs = Runs()
    for there in (count, BACKLOG):
        runs.add(f"{there:,} messages", *emptied(database, batches(there, 10_000)))
    return runs.results()


def bodies(database: Database, count: int, rounds: int) -> dict[str, Any]:
    """With bodies of so many bytes."""
    runs = Runs()
    for _ in range(rounds):
        for name, size in BODIES.items():
            few = max(200, min(count, count * 1000 // size))
            runs.add(name, *emptied(database, batches(few, 100, "n" * size)))
    return runs.results()


def flows(database: Database, count: int, rounds: int) -> dict[str, Any]:
    """With so many channels, each with a flow of its own or without, and messages to all of the flows."""
    runs = Runs()
    for _ in range(rounds):
        for channels, served in ((1, 1), (200, 200), (1_000, 1)):
            cost, rate = spread(database.fresh(), channels, served, count)
            runs.add(f"{channels:,} channels, {served} flows", cost, rate)
    return runs.results()


def spread(place: Place, channels: int, served: int, count: int) -> tuple[float, float]:
    """CPU for each message, and messages per second, of an app with so many channels and flows."""
    app, done, left = App("bench"), threading.Event(), [count]
    counting = threading.Lock()

    def handle(number: int) -> None:
        with counting:
            left[0] -= 1
            if not left[0]:
                done.set()

    for number in range(channels):
        channel = app.channel(f"channel-{number}", int)
        if number < served:
            app.flow(channel, name=f"flow-{number}")(handle)
    settings = Settings(database_url=place.database, broker_url=place.broker)
    store = open_store(settings, check=False)
    store.upgrade()
    store.close()
    services = connect(settings)
    app.connect(services)
    services.transport.declare(list(app.flows))
    for number in range(served):
        app.publish_many(f"channel-{number}", range(count // served))
    worker = Worker(app, services)
    while place.broker and worker.relay.step():
        """They go to the broker before anything is measured."""
    thread = threading.Thread(target=worker.run)
    gc.collect()
    meter = Meter(place.servers.values())
    thread.start()
    finished = done.wait(DEADLINE_SECONDS)
    usage = meter.read()
    worker.stop()
    thread.join()
    services.close()
    if not finished:
        raise Lost(f"{left[0]} of {count} were not handled in {DEADLINE_SECONDS} s")
    return (usage.worker + usage.servers) / count, count / usage.wall


def workers(database: Database, count: int, rounds: int) -> dict[str, Any]:
    """With so many worker processes."""
    runs = Runs()
    for _ in range(rounds):
        for many in WORKERS:
            with stage(Entry("FlowKit", "flowkit", 2 * count, style="add"), database) as one:
                run = one.throughput(2 * count, many)
            runs.add(f"{many} workers", sum(run.cpu.values()) / 1e6, run.rate)
    return runs.results()


def latency(database: Database, count: int, rounds: int) -> dict[str, Any]:
    """At these parts of what one publisher and one worker bear together, from when a message was due, through
    `app.publish_many` of all that is due, to the commit of its effect."""
    entry = Entry("FlowKit", "flowkit", count, style="add")
    with stage(entry, database) as one:
        most = 2 * count * (1 - WARM) / max(one.latency(2 * count, AT_ONCE))
    found: dict[str, Any] = {"most_messages_per_second": round(most)}
    for load in LOADS:
        rate = most * load
        with stage(entry, database) as one:
            times = sorted(one.latency(int(max(1_000, 10 * rate)), rate))
        name = f"{load:.0%}: {rate:,.0f} messages/s"
        found[name] = {part: round(times[int(len(times) * share)] * 1e3, 2) for part, share in TAILS.items()}
        print(f"  {name}: {found[name]} ms", flush=True)
    return found


def idle(database: Database, count: int, rounds: int) -> dict[str, Any]:
    """A worker that starts, and then has nothing to do: as users start it."""
    place = database.fresh()
    settings = Settings(database_url=place.database, broker_url=place.broker)
    store = open_store(settings, check=False)
    store.upgrade()
    store.close()
    environment = {
        **os.environ,
        "FLOWKIT_DATABASE_URL": place.database,
        "FLOWKIT_BROKER_URL": place.broker,
    }
    began = time.monotonic()
    command = [sys.executable, "-m", "flowkit", "run", "benchmarks.scale:app", "--workers", "1"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        looked: Any = open_store(settings)
        while not any(one.state == "ready" for one in looked.ledger.workers()):
            if time.monotonic() - began > 60:
                raise Lost("no worker was ready within a minute")
            time.sleep(0.01)
        ready = time.monotonic() - began
        looked.close()
        time.sleep(5)  # what starts has started
        since, used, servers = time.monotonic(), of_trees([process.pid]), of_trees(place.servers.values())
        workers = sum(of_trees([pid]) for pid in family(process.pid))
        time.sleep(30)
        seconds = time.monotonic() - since
        both, others = of_trees([process.pid]) - used, of_trees(place.servers.values()) - servers
        worker = sum(of_trees([pid]) for pid in family(process.pid)) - workers
        sizes = {pid: memory(pid) for pid in (process.pid, *family(process.pid))}
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    return {
        "seconds_until_ready": round(ready, 2),
        "worker_percent_of_a_core": round(100 * worker / seconds, 2),
        "supervisor_percent_of_a_core": round(100 * (both - worker) / seconds, 2),
        "servers_percent_of_a_core": round(100 * others / seconds, 2),
        "supervisor_mb": sizes.pop(process.pid),
        "worker_mb": max(sizes.values()),
    }


def family(parent: int) -> list[int]:
    """The processes that a process has started."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def memory(pid: int) -> float:
    """Megabytes that a process holds in memory."""
    return round(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


PARTS: dict[str, Callable[[Database, int, int], dict[str, Any]]] = {
    "workers": workers,
    "inbox": inbox,
    "outbox": outbox,
    "backlog": backlog,
    "bodies": bodies,
    "flows": flows,
    "latency": latency,
    "idle": idle,
}
DATABASES = ("sqlite", "postgresql", "rabbitmq")
WITHOUT = {("SQLite", "outbox"), ("SQLite", "workers"), ("RabbitMQ + PostgreSQL", "outbox")}
"""SQLite has one writer; behind a broker what waits is in PostgreSQL all the same."""


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--databases", nargs="+", default=DATABASES, choices=DATABASES)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that every process that was started is ended
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    with databases(set(options.databases)) as found:
        for name, part in PARTS.items():
            for database in found:
                if name not in options.parts or (database.name, name) in WITHOUT:
                    continue
                print(f"{name} on {database.name}")
                measured = part(database, options.messages, options.rounds)
                results.setdefault(name, {})[database.name] = measured
                options.output.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
