"""`make bench`: the reliable work by FlowKit and by a naive loop, interleaved in one run, on SQLite and PostgreSQL."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.naive import Naive
from benchmarks.producer import RATE
from benchmarks.work import STYLES, Order, Style
from benchmarks.worker import FlowKit
from flowkit.config import Settings, open_store
from flowkit.store.sqlite import driver
from tests.services.postgresql import PostgreSQL, find_binaries

RESULTS = Path(__file__).parent / "results" / "latest.json"
WARM = 100
"""Messages of a latency run that are not counted: imports, mappers and prepared statements are made with them."""


def contenders(url: str, style: Style, database: int | None) -> list[Callable[[], Any]]:
    """How to open each of them, on fresh tables."""

    def naive() -> Any:
        store = open_store(Settings(database_url=url), check=False)
        store.upgrade()
        return Naive(store.dialect.engine, style, database)

    return [naive, lambda: FlowKit(url, style, database)]


def throughput(url: str, style: Style, count: int, rounds: int, database: int | None) -> dict[str, Any]:
    """Messages per second and CPU per message, medians of interleaved rounds."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(rounds):
        for opened in contenders(url, style, database):
            one = opened()
            one.send([Order(id=number) for number in range(count)])
            wall, own, theirs = one.run(count)
            one.check(count)
            one.close()
            found.setdefault(one.name, []).append((count / wall, own / count * 1e6, theirs / count * 1e6))
    ratios = [mine[0] / theirs[0] for mine, theirs in zip(found[FlowKit.name], found[Naive.name], strict=True)]
    return {
        "ratio": round(median(ratios), 2),
        "ratio_spread": [round(min(ratios), 2), round(max(ratios), 2)],
        **{
            name: {
                "messages_per_second": round(median(run[0] for run in runs)),
                "spread": [round(min(run[0] for run in runs)), round(max(run[0] for run in runs))],
                "worker_cpu_us": round(median(run[1] for run in runs), 1),
                "database_cpu_us": round(median(run[2] for run in runs), 1),
            }
            for name, runs in found.items()
        },
    }


def latency(url: str, style: Style, seconds: float, rounds: int) -> dict[str, Any]:
    """Milliseconds from the intended sending to the commit, at a steady rate, medians of interleaved rounds."""
    count = int(seconds * RATE)
    found: dict[str, list[tuple[float, ...]]] = {}
    for _ in range(rounds):
        for opened in contenders(url, style, None):
            one = opened()
            producer = subprocess.Popen([sys.executable, "-m", "benchmarks.producer", one.name, url, str(count)])
            times = sorted(one.latencies(count)[WARM:])
            assert producer.wait(60) == 0
            one.check(count)
            one.close()
            found.setdefault(one.name, []).append(tuple(times[int(len(times) * p)] * 1e3 for p in (0.5, 0.95, 0.99)))
    result: dict[str, Any] = {
        name: dict(
            zip(("p50_ms", "p95_ms", "p99_ms"), (round(median(run), 2) for run in zip(*runs, strict=True)), strict=True)
        )
        for name, runs in found.items()
    }
    mine, theirs = result[FlowKit.name], result[Naive.name]
    return result | {f"{p}_ratio": round(mine[f"{p}_ms"] / theirs[f"{p}_ms"], 2) for p in ("p50", "p95", "p99")}


def report(database: str, style: Style, speed: dict[str, Any], wait: dict[str, Any]) -> None:
    """Print what was measured for one style on one database."""
    print(f"\n{database}, {STYLES[style]}: {speed['ratio']}x the naive loop {speed['ratio_spread']}")
    for name in (Naive.name, FlowKit.name):
        run, times = speed[name], wait[name]
        print(
            f"  {name:10} {run['messages_per_second']:>7,}/s {run['spread']}  CPU per message: worker "
            f"{run['worker_cpu_us']} µs, database {run['database_cpu_us']} µs  at {RATE}/s: p50 {times['p50_ms']} ms, "
            f"p95 {times['p95_ms']} ms, p99 {times['p99_ms']} ms"
        )
    print(f"  latency ratios: p50 {wait['p50_ratio']}, p95 {wait['p95_ratio']}, p99 {wait['p99_ratio']}", flush=True)


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds of the throughput")
    parser.add_argument("--latency-rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="of each latency run")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    results: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "messages": options.messages,
        "rounds": options.rounds,
        "latency_rounds": options.latency_rounds,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "sqlite": driver().sqlite_version,
        "databases": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        places: list[tuple[str, str, int | None]] = [("SQLite", f"sqlite:///{folder}/bench.db", None)]
        server = PostgreSQL() if find_binaries() else None
        try:
            if server is None:
                print("PostgreSQL is not installed: run tests/services/install", file=sys.stderr)
            else:
                server.start()
                places.append(("PostgreSQL", server.create_database("bench"), server.pid))
            for database, url, pid in places:
                for style in STYLES:
                    speed = throughput(url, style, options.messages, options.rounds, pid)
                    wait = latency(url, style, options.seconds, options.latency_rounds)
                    results["databases"].setdefault(database, {})[style] = {"throughput": speed, "latency": wait}
                    report(database, style, speed, wait)
        finally:
            if server is not None:
                server.close()
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
