"""Latency: messages arrive at a steady rate, regardless of earlier ones."""

import subprocess
import sys
from statistics import median

from benchmarks.contender import Kind, Lost
from benchmarks.database import Database
from benchmarks.producer import RATE
from benchmarks.work import Style

WARM = RATE // 2
"""Number of first messages that are not counted: imports, mappers and prepared statements are made with them."""
PERCENTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


def latency(database: Database, style: Style, seconds: float, rounds: int) -> list[dict[str, object]]:
    """Milliseconds from the intended sending to the commit, medians of interleaved rounds: of the naive loop, and of
    each way into FlowKit with its ratios to that loop."""
    runs: dict[Kind, list[dict[str, float]]] = {kind: [] for kind in (database.naive, *database.entries)}
    for _ in range(rounds):
        for kind, found in runs.items():
            found.append(_run(kind, database, style, int(seconds * RATE)))
    naive = runs[database.naive]
    return [
        {
            "contender": kind.name,
            "ms": {name: round(median(run[name] for run in found), 2) for name in PERCENTILES},
            "ratio": {
                name: round(median(mine[name] / theirs[name] for mine, theirs in zip(found, naive, strict=True)), 2)
                for name in PERCENTILES
            },
        }
        for kind, found in runs.items()
    ]


def _run(kind: Kind, database: Database, style: Style, count: int) -> dict[str, float]:
    place, total = database.fresh(), count + WARM
    contender = kind(place, style)
    producer = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.producer", contender.name, place.database, place.broker, str(total)]
    )
    try:
        times = sorted(contender.latencies(total)[WARM:])
        if producer.wait(60):
            raise Lost(f"the producer for {contender.name} failed")
        contender.check(total)
    finally:
        producer.kill()
        producer.wait()
        contender.close()
    return {name: times[int(len(times) * part)] * 1e3 for name, part in PERCENTILES.items()}
