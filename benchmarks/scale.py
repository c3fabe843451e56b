"""The cost of FlowKit at large numbers, such as of flows, messages or workers: `make bench-scale`.

Each part compares alternate runs on one machine, by CPU for each message if possible, because machines are shared.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.contender import Lost, Place, equal
from benchmarks.cpu import Meter, of_trees
from benchmarks.database import Database, circumstances, databases
from benchmarks.latency import PERCENTILES
from benchmarks.peers.entries import Entry
from benchmarks.peers.stage import stage
from benchmarks.work import Order
from benchmarks.worker import FlowKit, Site
from flowkit import App
from flowkit.ports import Retention
from flowkit.services import open_store
from flowkit.settings import Settings

RESULTS = Path(__file__).parent / "results" / "scale.json"
SIZES = (10_000, 1_000_000, 10_000_000)
SLICE = 1_000_000
"""Rows of one statement."""
WORKERS = (1, 2, 4)
EACH = 6
"""Times as many messages, that every worker has begun long before the end."""
LOADS = (0.1, 0.5, 0.8)
AT_ONCE = 1e6
"""Messages per second that nobody publishes: all are due from the beginning."""
TAILS = PERCENTILES | {"p99.9": 0.999}
BODIES = {"250 B": 90, "64 KB": 64 * 1024, "1 MB": 1024 * 1024 - 1024}
VOLUME = 128 * 1024 * 1024
"""Bytes of the bodies of a run, if so many messages are not too few, or too many."""
GIVEN = {
    "SQLite": """
        WITH RECURSIVE given (number) AS
            (SELECT {first} UNION ALL SELECT number + 1 FROM given WHERE number < {last}),
        named AS (SELECT number, printf('%032x', number) AS hex FROM given)""",
    "PostgreSQL": """
        WITH named AS (SELECT number, lpad(to_hex(number), 32, '0') AS hex
                       FROM generate_series({first}, {last}) AS number)""",
}
FILLED = {"SQLite": ["PRAGMA wal_checkpoint(TRUNCATE)"], "PostgreSQL": ["VACUUM (ANALYZE)", "CHECKPOINT"]}
"""What databases do sooner or later with what was written: before anything is measured."""


class Rows(NamedTuple):
    """Rows that are there before, and how many of them still are."""

    fill: str
    left: str


KNOWN = Rows(
    """
        INSERT INTO flowkit_inbox (flow, source, id, state, generation, attempts, suspect, changed)
        SELECT 'bench.work', 'bench', '0000' || hex, 1, 0, 0, 0, {now} FROM named""",
    "SELECT count(*) FROM flowkit_inbox WHERE flow = 'bench.work' AND source = 'bench' AND id < '0001'",
)
"""Messages that were applied just now, whose ids lie before those of new ones, as ids of growing times do."""
DELAYED = Rows(
    """
        INSERT INTO flowkit_messages (copy, flow, source, id, channel, body, type, time, generation, attempts,
                                      deliveries, staged, due)
        SELECT '0000' || hex, 'bench.work', 'bench', '0000' || hex, 'orders', '{{}}', 'Order', {now}, 0, 0, 0, {now},
               9000000000000000 + number FROM named""",
    "SELECT count(*) FROM flowkit_messages WHERE copy < '0001'",
)


EXPIRED = KNOWN._replace(fill=KNOWN.fill.replace("{now}", "number"))
"""Messages that were applied longer ago than the inbox remembers."""


app = App("bench")
app.flow(app.channel("orders", int), name="work")(lambda number: None)


class Plan(NamedTuple):
    """How much is measured."""

    messages: int
    rounds: int
    sizes: tuple[int, int, int]
    """Few rows or messages, many, and very many."""


class Runs:
    """CPU for each message, and messages per second, of runs that take turns."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[int, float, float]]] = {}

    def add(self, name: str, count: int, cost: float, rate: float) -> None:
        print(f"  {name}: {cost * 1e6:.1f} µs of CPU for each message, {rate:,.0f} messages/s", flush=True)
        self._found.setdefault(name, []).append((count, cost, rate))

    def measure(self, name: str, site: Site, count: int) -> None:
        """Let a worker empty a queue of so many."""
        usage = site.run(count)
        self.add(name, count, (usage.worker + usage.servers) / count, count / usage.wall)

    def results(self) -> dict[str, dict[str, float]]:
        """Medians, and the ratio of the cost to that of the first."""
        costs = {name: statistics.median(cost for _, cost, _ in found) for name, found in self._found.items()}
        first = next(iter(costs.values()))
        return {
            name: {
                "messages": found[0][0],
                "cpu_us_per_message": round(costs[name] * 1e6, 1),
                "messages_per_second": round(statistics.median(rate for *_, rate in found)),
                "cost_ratio": round(costs[name] / first, 2),
            }
            for name, found in self._found.items()
        }


def batches(count: int, size: int, note: str = "n" * BODIES["250 B"]) -> Iterator[list[Order]]:
    """Batches of `size` orders, `count` orders in all."""
    for first in range(0, count, size):
        yield [Order(id=number, note=note) for number in range(first, min(first + size, count))]


def emptied(runs: Runs, name: str, database: Database, count: int, batches: Iterable[Sequence[Order]]) -> None:
    """A queue is filled with these batches, and emptied by one worker."""
    with closing(FlowKit(database.fresh(), "none")) as contender:
        for orders in batches:
            contender.send(orders)
        runs.measure(name, contender, count)


def filled(database: Database, plan: Plan, sizes: Sequence[int], rows: Rows) -> dict[str, Any]:
    """Rounds with so many rows there before, and with the first number of them directly before and after: to fill a
    database takes longer than the rounds."""
    few, *others = sizes
    found = {}
    for many in others:
        runs = Runs()
        for there in (few, many, few):
            with closing(FlowKit(database.fresh(), "none")) as contender:
                fill(contender, database, rows, there)
                for _ in range(plan.rounds):
                    tidy(contender, database)
                    contender.send(next(batches(plan.messages, plan.messages)))
                    runs.measure(f"{there:,} rows", contender, plan.messages)
                equal("rows that are still there", contender.execute(rows.left), there)
        found[f"{many:,} rows"] = runs.results()
    return found


def fill(site: Site, database: Database, rows: Rows, many: int) -> None:
    """Let so many rows be there."""
    statement = GIVEN[kind(database)] + rows.fill
    for first in range(0, many, SLICE):
        site.execute(statement.format(first=first, last=min(first + SLICE, many) - 1, now=int(time.time() * 1e6)))


def tidy(site: Site, database: Database) -> None:
    """Let the database do what it would do later."""
    for statement in FILLED[kind(database)]:
        site.execute(statement)


def kind(database: Database) -> str:
    """Which database there is, with or without a broker."""
    return "SQLite" if database.name == "SQLite" else "PostgreSQL"


def retention(database: Database, plan: Plan) -> dict[str, Any]:
    """With so many rows that the inbox has to forget. What the database does after that counts too."""
    runs, many = Runs(), plan.sizes[1]
    for _ in range(plan.rounds):
        place = database.fresh()
        with closing(FlowKit(place, "none")) as contender:
            fill(contender, database, EXPIRED, many)
            tidy(contender, database)
            app = contender.app
            policy = Retention(app.name, list(app.flows), list(app.channels), app.retention, app.dead_letter_hold)
            meter, forgotten = Meter(place.servers.values()), 0
            while removed := contender.services.store.retention.clean(policy, "bench"):
                forgotten += removed
            tidy(contender, database)
            usage = meter.read()
            equal("rows that were forgotten", forgotten, many)
            runs.add("rows forgotten", many, (usage.worker + usage.servers) / many, many / usage.wall)
    return runs.results()


def inbox(database: Database, plan: Plan) -> dict[str, Any]:
    """With so many messages that were applied before."""
    return filled(database, plan, plan.sizes, KNOWN)


def outbox(database: Database, plan: Plan) -> dict[str, Any]:
    """With so many messages that wait for their time."""
    return filled(database, plan, (0, plan.sizes[1]), DELAYED)


def backlog(database: Database, plan: Plan) -> dict[str, Any]:
    """With so many messages in the queue. Once each: the large one is long enough."""
    runs = Runs()
    for there in (plan.messages, plan.sizes[1]):
        emptied(runs, f"{there:,} messages", database, there, batches(there, 10_000))
    return runs.results()


def bodies(database: Database, plan: Plan) -> dict[str, Any]:
    """With bodies of so many bytes."""
    runs = Runs()
    for _ in range(plan.rounds):
        for name, size in BODIES.items():
            count = min(plan.messages, max(200, VOLUME // size))
            emptied(runs, name, database, count, batches(count, 100, "n" * size))
    return runs.results()


def flows(database: Database, plan: Plan) -> dict[str, Any]:
    """With so many channels, each with a flow, and so many of these in the worker, which all get messages."""
    runs = Runs()
    for _ in range(plan.rounds):
        for channels, served in ((1, 1), (200, 200), (1_000, 1)):
            spread(runs, database.fresh(), channels, served, plan.messages // served)
    return runs.results()


def spread(runs: Runs, place: Place, channels: int, served: int, count: int) -> None:
    """Send `count` messages to each served flow. The other flows belong to another app."""
    app = App("bench")
    for number in range(channels):
        channel = app.channel(f"channel-{number}", int)
        if number < served:
            app.flow(channel, name=f"flow-{number}")(lambda number: None)
    with closing(Site(place, app)) as site:
        store = site.services.store
        store.subscribers.add({f"other.flow-{number}": f"channel-{number}" for number in range(served, channels)})
        for number in range(served):
            app.publish_many(f"channel-{number}", range(count))
        site.settle()
        runs.measure(f"{channels:,} channels, {served} flows served", site, served * count)
        applied = {flow: balance.applied for flow, balance in store.ledger.balances().items() if flow in app.flows}
        equal("applied", applied, dict.fromkeys(app.flows, count))


def workers(database: Database, plan: Plan) -> dict[str, Any]:
    """With so many worker processes."""
    runs, count = Runs(), EACH * plan.messages
    for _ in range(plan.rounds):
        for many in WORKERS:
            with stage(Entry("FlowKit", "flowkit", count, style="add"), database) as one:
                run = one.throughput(count, many)
            runs.add(f"{many} workers", count, sum(run.cpu.values()) / 1e6, run.rate)
    return runs.results()


def latency(database: Database, plan: Plan) -> dict[str, Any]:
    """At these parts of what one publisher and one worker bear together, from when a message was due, through
    `app.publish_many` of all that is due, to the commit of its effect."""
    entry = Entry("FlowKit", "flowkit", plan.messages, style="add")
    most = statistics.median(bearable(entry, database, 2 * plan.messages) for _ in range(plan.rounds))
    counts = {load: int(max(1_000, 10 * load * most)) for load in LOADS}
    runs: dict[float, list[dict[str, float]]] = {load: [] for load in LOADS}
    for _ in range(plan.rounds):
        for load, found in runs.items():
            with stage(entry, database) as one:
                times = sorted(one.latency(counts[load], load * most))
            found.append({part: times[int(len(times) * share)] * 1e3 for part, share in TAILS.items()})
            print(f"  {load:.0%}: {found[-1]} ms", flush=True)
    return {"most_messages_per_second": round(most)} | {
        f"{load:.0%}: {load * most:,.0f} messages/s": {
            "messages": counts[load],
            **{part: round(statistics.median(run[part] for run in found), 2) for part in TAILS},
        }
        for load, found in runs.items()
    }


def bearable(entry: Entry, database: Database, count: int) -> float:
    """Messages per second, where all are due from the beginning."""
    with stage(entry, database) as one:
        times = one.latency(count, AT_ONCE)
    return len(times) / (max(times) - min(times))


def idle(database: Database, plan: Plan) -> dict[str, Any]:
    """A worker that starts, and then has nothing to do: as users start it."""
    place = database.fresh()
    settings = Settings(database_url=place.database, broker_url=place.broker)
    store = open_store(settings, check=False)
    store.schema.upgrade()
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


PARTS: dict[str, Callable[[Database, Plan], dict[str, Any]]] = {
    "workers": workers,
    "inbox": inbox,
    "retention": retention,
    "outbox": outbox,
    "backlog": backlog,
    "bodies": bodies,
    "flows": flows,
    "latency": latency,
    "idle": idle,
}
DATABASES = ("sqlite", "postgresql", "rabbitmq")
WITHOUT = {("SQLite", "workers"), ("RabbitMQ + PostgreSQL", "retention")}
"""It has one writer; the broker has no part in it."""


def main() -> int:
    """Measure, print, and write the results of each part, with those of other parts that are there. 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs=3, default=SIZES, help="few, many and very many rows or messages")
    parser.add_argument("--databases", nargs="+", default=DATABASES, choices=DATABASES)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that every process that was started is ended
    plan, failed = Plan(options.messages, options.rounds, tuple(options.sizes)), 0
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    with databases(set(options.databases)) as found:
        for name, part in PARTS.items():
            for database in found:
                if name not in options.parts or (database.name, name) in WITHOUT:
                    continue
                print(f"{name} on {database.name}")
                about = circumstances() | {"version": database.version, "rounds": plan.rounds}
                try:
                    about["results"] = part(database, plan)
                except Exception as error:
                    about["error"], failed = f"{type(error).__name__}: {error}", 1
                    print(f"  {about['error']}", file=sys.stderr, flush=True)
                results.setdefault(name, {})[database.name] = about
                options.output.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    return failed


if __name__ == "__main__":
    sys.exit(main())
