"""Checks whether FlowKit has become slower: CPU for each message, relative to the naive loop's in the same minute.

Machines differ, and run other programs. The ratio of two CPU times of one run is stable, and is compared with the
committed ratio. The least of several rounds counts, because other programs only add time. On a busy machine the ratio
still varies by a fifth, so a slower result is measured again: a real slowdown remains.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from benchmarks.contender import Kind
from benchmarks.database import Database, databases
from benchmarks.throughput import run
from benchmarks.worker import FlowKit

COMMITTED = Path(__file__).parent / "results" / "quick.json"
COUNTS = {"SQLite": (2_000, 4_000), "PostgreSQL": (1_000, 4_000), "RabbitMQ + PostgreSQL": (600, 4_000)}
"""Messages of the naive loop's runs, and of FlowKit's."""
ROUNDS = 5
WORSE = 1.2
"""A ratio that has grown by more than this, each time that it is measured, is a regression."""
TRIES = 3
"""So often it is measured; and so often what is committed, of which the median is."""


def ratio(database: Database) -> float:
    """CPU for each message, of FlowKit's worker and the servers, by that of the naive loop."""
    naive, flowkit = COUNTS[database.name]
    contenders: list[tuple[Kind, int]] = [(database.naive, naive), (FlowKit, flowkit)]
    costs: dict[str, list[float]] = {kind.name: [] for kind, _ in contenders}
    for _ in range(ROUNDS):
        for kind, count in contenders:
            usage = run(kind, database, "add", count)
            costs[kind.name].append((usage.worker + usage.servers) / count)
    return round(min(costs[FlowKit.name]) / min(costs[database.naive.name]), 3)


def main() -> int:
    """Measure, compare and say so. 1 if something has become slower."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quick", description=__doc__)
    parser.add_argument("--write", action="store_true", help="commit to what is measured now")
    options = parser.parse_args()
    with databases({"sqlite", "postgresql", "rabbitmq"}) as found:
        if options.write:
            measured = {one.name: [ratio(one) for _ in range(TRIES)] for one in found}
            print(json.dumps(measured, indent=2))
            medians = {name: statistics.median(ratios) for name, ratios in measured.items()}
            COMMITTED.write_text(json.dumps(medians, indent=2) + "\n")
            return 0
        committed = json.loads(COMMITTED.read_text())
        slower = [one.name for one in found if not as_fast(one, committed[one.name])]
    if slower:
        print(f"slower than committed by more than {WORSE - 1:.0%}: {', '.join(slower)}", file=sys.stderr)
    return 1 if slower else 0


def as_fast(database: Database, committed: float) -> bool:
    """Whether one of the tries is no slower than what was committed."""
    for _ in range(TRIES):
        now = ratio(database)
        print(f"{database.name}: {now} of the naive loop's CPU for each message; committed: {committed}", flush=True)
        if now <= committed * WORSE:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
