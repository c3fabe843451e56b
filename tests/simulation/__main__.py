"""`make simulate`: run many seeds, or the mutants; print each failure, its faults, and the command to repeat it."""

import argparse
import json
import os
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.progress import track

from tests.simulation.campaign import ACCEPTED, MUTANT_RUNS, Report, merge, mutants, run_all, seldom
from tests.simulation.mutants import MUTANTS
from tests.simulation.run import shortest


def main() -> int:
    options = arguments()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of names have an order that a seed must not depend on.
        command = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "PYTHONHASHSEED": "0"})
    console = Console()
    began = time.monotonic()
    if options.mutants:
        return show_mutants(console, options.jobs, options.json)
    results = run_all(options.first, options.seeds, options.jobs)
    report = merge(track(results, "simulating", options.seeds, console=console))
    show(console, report, time.monotonic() - began)
    if options.json:
        write(options.json, report, options.first, options.seeds, time.monotonic() - began)
    few = seldom(report.hits(), report.places(), options.least)
    if options.least:
        for where, why in ACCEPTED.items():
            console.print(f"accepted to be rare: {where}: {why}", highlight=False)
    if few:
        console.print(f"[bold red]happened less than {options.least} times[/]: {', '.join(few)}", highlight=False)
    return 1 if report.failures or few else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed")
    parser.add_argument("--least", type=int, default=0, help="how often each fault must have hit each place")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--mutants", action="store_true", help="break the engine on purpose, and see it caught")
    parser.add_argument("--json", type=Path, help="write the result there")
    return parser.parse_args()


def show(console: Console, report: Report, took: float) -> None:
    """Say what failed and what broke."""
    for result in islice(report.failures, 5):
        small = shortest(result)
        console.print(f"\n[bold red]seed {result.seed}[/]: {small.failure}", highlight=False)
        console.print(f"  see it again: make simulate FROM={result.seed} SEEDS=1; its shortest trace:")
        for fault in small.faults:
            console.print(f"  {fault.time:9.3f} s  {fault.kind} at {fault.where} in {fault.who}", highlight=False)
    kinds = Counter[str]()
    for (kind, _), count in report.faults.items():
        kinds[kind] += count
    counts = report.counts
    console.print(f"{counts['runs']:,} runs in {took:.0f} s: {len(report.failures)} failed")
    console.print(", ".join(f"{count:,} {name}" for name, count in counts.items() if name != "runs"), highlight=False)
    console.print(", ".join(f"{count:,} × {kind}" for kind, count in kinds.most_common()), highlight=False)


def write(path: Path, report: Report, first: int, seeds: int, took: float) -> None:
    """The result as JSON, with how often each kind of fault hit each place."""
    path.write_text(
        json.dumps(
            {
                "first": first,
                "seeds": seeds,
                "failed": [(result.seed, result.failure) for result in report.failures],
                "points": report.points,
                "virtual_seconds": round(report.seconds),
                "seconds": round(took),
                "counts": dict(report.counts),
                "faults": report.hits(),
                "met": dict(report.places().most_common()),
                "accepted": ACCEPTED,
            },
            indent=1,
        )
        + "\n"
    )


def show_mutants(console: Console, jobs: int, path: Path | None) -> int:
    """Break the engine in each known way, and run seeds until the oracle sees it."""
    caught: dict[str, int] = {}
    for name, seen in track(mutants(jobs), "mutants", len(MUTANTS), console=console):
        said = name.replace("_", " ")
        if seen is None:
            console.print(f"[bold red]{said}: not seen in {MUTANT_RUNS} runs[/]")
        else:
            caught[name], result = seen
            console.print(f"{said}: seen in run {caught[name]}: {result.failure[:100]}", highlight=False)
    if path:
        found = {"runs": MUTANT_RUNS, "seen_in_run": caught, "mutants": len(MUTANTS)}
        path.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if len(caught) == len(MUTANTS) else 1


if __name__ == "__main__":
    sys.exit(main())
