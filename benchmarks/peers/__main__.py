"""FlowKit and its peers, measured alternately: `make bench-peers`."""

import argparse
import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from benchmarks.contender import Lost
from benchmarks.database import Database, circumstances, databases
from benchmarks.peers.entries import CONTESTS, LATENCY, Contest, Entry
from benchmarks.peers.stage import Run, Stage, stage

RESULTS = Path(__file__).parent.parent / "results" / "peers.json"
LIBRARIES = ("celery", "dramatiq", "faststream", "procrastinate", "dbos", "awa-pg", "huey", "pika", "psycopg")
RATE = 200.0
"""Messages per second, where latency is measured."""
PERCENTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
NAMES = {"rabbitmq": "RabbitMQ + PostgreSQL", "postgresql": "PostgreSQL", "sqlite": "SQLite"}
T = TypeVar("T")


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each latency run")
    parser.add_argument("--share", type=float, default=1.0, help="of the messages of each run; less is less to rely on")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="entries whose title has one of these")
    parser.add_argument("--contests", nargs="*", default=[*NAMES, "latency"], choices=[*NAMES, "latency"])
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that every process that was started is ended
    wanted = {"rabbitmq" if one == "latency" else one for one in options.contests}
    results: dict[str, Any] = {
        **circumstances(),
        "rounds": options.rounds,
        "versions": {name: version(name) for name in LIBRARIES},
        "contests": {},
    }
    console = Console(width=None if os.isatty(1) else 140)
    with databases(wanted) as found:
        by_name = {database.name: database for database in found}
        for contest in CONTESTS:
            if contest.database in options.contests:
                words = options.only or [""]
                entries = [one for one in contest.entries if any(word in one.title for word in words)]
                runs = play(by_name[NAMES[contest.database]], entries, options.rounds, options.share)
                results["contests"][contest.name] = {
                    "version": by_name[NAMES[contest.database]].version,
                    "entries": summary(contest, runs),
                }
                write(options.output, results)
                show(console, contest.name, results["contests"][contest.name]["entries"])
        if "latency" in options.contests:
            results["latency"] = latencies(by_name[NAMES["rabbitmq"]], options.rounds, options.seconds)
            write(options.output, results)
            show_latency(console, results["latency"])


def write(path: Path, results: dict[str, Any]) -> None:
    """Write what is measured so far: who fails later does not take it along."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def play(database: Database, entries: list[Entry], rounds: int, share: float) -> dict[Entry, list[Run]]:
    """Run rounds, in each of which every entry runs once, because machines drift."""
    runs: dict[Entry, list[Run]] = defaultdict(list)
    for number in range(rounds):
        for entry in entries:
            run = played(entry, database, lambda one: one.throughput(int(one.entry.count * share)))
            runs[entry].append(run)
            print(f"{number + 1}/{rounds} {database.name}, {entry.title}: {run.rate:,.0f}/s", flush=True)
    return runs


def played(entry: Entry, database: Database, run: Callable[[Stage], T]) -> T:
    """The result of a run. A failed contender runs once more."""
    try:
        with stage(entry, database) as one:
            return run(one)
    except Lost as error:
        print(f"{entry.title} failed, and plays again: {error}", flush=True)
    with stage(entry, database) as one:
        return run(one)


def summary(contest: Contest, runs: dict[Entry, list[Run]]) -> list[dict[str, Any]]:
    """Medians, between what they lie, and the ratios to the reference within the rounds."""
    reference = next((found for entry, found in runs.items() if entry.title == contest.reference), None)
    lines = []
    for entry, found in runs.items():
        rates = [run.rate for run in found]
        line: dict[str, Any] = {
            "contender": entry.name,
            "work": entry.work,
            "style": entry.style if entry.work == "reliable" else "",
            "messages_per_second": round(median(rates)),
            "range": [round(min(rates)), round(max(rates))],
            "cpu_us_per_message": {who: round(median(run.cpu[who] for run in found), 1) for who in found[0].cpu},
        }
        if reference is not None:
            ratios = [mine.rate / theirs.rate for mine, theirs in zip(found, reference, strict=True)]
            line["ratio"] = round(median(ratios), 2)
        lines.append(line)
    return lines


def latencies(database: Database, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Milliseconds from when a message was due to its commit, medians of the rounds."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for number in range(rounds):
        for entry in LATENCY:
            times = sorted(played(entry, database, lambda one: one.latency(int(seconds * RATE), RATE)))
            run = {name: times[int(len(times) * part)] * 1e3 for name, part in PERCENTILES.items()}
            found[entry.name].append(run)
            print(f"{number + 1}/{rounds} latency, {entry.name}: {run}", flush=True)
    return [
        {"contender": name, "ms": {part: round(median(run[part] for run in runs), 2) for part in PERCENTILES}}
        for name, runs in found.items()
    ]


def show(console: Console, name: str, lines: list[dict[str, Any]]) -> None:
    servers = sorted({who for line in lines for who in line["cpu_us_per_message"]} - {"worker"})
    table = Table("", "work", "handler", "messages/s", "range", "ratio", "worker µs", *(f"{one} µs" for one in servers))
    table.title = name
    for line in sorted(lines, key=lambda line: -line["messages_per_second"]):
        low, high = line["range"]
        cpu = [str(line["cpu_us_per_message"].get(who, "")) for who in ("worker", *servers)]
        ratio = f"{line['ratio']} ×" if "ratio" in line else ""
        table.add_row(
            line["contender"],
            line["work"],
            line["style"],
            f"{line['messages_per_second']:,}",
            f"{low:,}–{high:,}",
            ratio,
            *cpu,
        )
    console.print(table)


def show_latency(console: Console, lines: list[dict[str, Any]]) -> None:
    table = Table("", *(f"{part} ms" for part in PERCENTILES), title=f"latency at {RATE:.0f} messages/s, quorum queues")
    for line in lines:
        table.add_row(line["contender"], *(str(ms) for ms in line["ms"].values()))
    console.print(table)


if __name__ == "__main__":
    main()
