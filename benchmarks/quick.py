"""Whether FlowKit has become slower: CPU for each message, beside the naive loop's in the same minute.

Machines differ, and are busy with others: the ratio of two CPU times of one run stays, and is compared with the one
that was committed. The least of some rounds counts: whatever else runs only adds.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.contender import Kind
from benchmarks.database import Database, databases
from benchmarks.throughput import run
from benchmarks.worker import FlowKit

COMMITTED = Path(__file__).parent / "results" / "quick.json"
COUNTS = {"SQLite": (2_000, 4_000), "PostgreSQL": (1_000, 4_000), "RabbitMQ + PostgreSQL": (600, 4_000)}
"""Messages of the naive loop's runs, and of FlowKit's."""
ROUNDS = 3
WORSE = 1.2
"""A ratio that has grown by more than this is a regression."""


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
    parser.add_argument("--write", action="store_true", help="commit to what was measured now")
    options = parser.parse_args()
    committed = json.loads(COMMITTED.read_text()) if COMMITTED.exists() else {}
    with databases({"sqlite", "postgresql", "rabbitmq"}) as found:
        measured = {database.name: ratio(database) for database in found}
    if options.write:
        COMMITTED.write_text(json.dumps(measured, indent=2) + "\n")
    slower = []
    for name, now in measured.items():
        before = committed.get(name)
        print(f"{name}: {now} of the naive loop's CPU for each message; committed: {before or 'nothing'}")
        if before and now > before * WORSE:
            slower.append(name)
    if slower and not options.write:
        print(f"slower than committed by more than {WORSE - 1:.0%}: {', '.join(slower)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
