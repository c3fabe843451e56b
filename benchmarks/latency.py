"""Latency: messages come at a steady rate, whether or not those before are done."""

import subprocess
import sys
from statistics import median

from benchmarks.contender import Kind, Lost
from benchmarks.database import Database
from benchmarks.naive import Naive
from benchmarks.producer import RATE
from benchmarks.work import Style
from benchmarks.worker import FlowKit

WARM = RATE // 2
"""So many are not counted: imports, mappers and prepared statements are made with them."""
PERCENTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


def latency(database: Database, style: Style, seconds: float, rounds: int) -> dict[str, object]:
    """Milliseconds from the intended sending to the commit, medians of interleaved rounds."""
    naive: list[dict[str, float]] = []
    flowkit: list[dict[str, float]] = []
    for _ in range(rounds):
        naive.append(_run(Naive, database, style, int(seconds * RATE)))
        flowkit.append(_run(FlowKit, database, style, int(seconds * RATE)))
    return {
        "naive_ms": {name: round(median(run[name] for run in naive), 2) for name in PERCENTILES},
        "flowkit_ms": {name: round(median(run[name] for run in flowkit), 2) for name in PERCENTILES},
        "ratio": {
            name: round(median(mine[name] / theirs[name] for mine, theirs in zip(flowkit, naive, strict=True)), 2)
            for name in PERCENTILES
        },
    }


def _run(kind: Kind, database: Database, style: Style, count: int) -> dict[str, float]:
    url, total = database.fresh(), count + WARM
    contender = kind(url, style, database.pid)
    producer = subprocess.Popen([sys.executable, "-m", "benchmarks.producer", contender.name, url, str(total)])
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
