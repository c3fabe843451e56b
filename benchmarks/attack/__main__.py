"""Attack a worker as outsiders would, on private servers and loopback only: `make attack`.

It prints a table of the attacks, and exits with status 1 if one succeeds. Rates are comparable within one run only.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from benchmarks.attack.verdict import Verdict
from benchmarks.database import commit

PARTS = ("identities", "keys", "floods", "canary")
NARROW = 160


def run(parts: list[str]) -> Iterator[Verdict]:
    """Each attack of these parts, told as it ends."""
    for part in parts:
        for verdict in importlib.import_module(f"benchmarks.attack.{part}").attacks():
            print(f"{'held' if verdict.held else 'DID NOT HOLD'}: {verdict.attack}: {verdict.seen}", flush=True)
            yield verdict


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attack", description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    options = parser.parse_args()
    os.environ.setdefault("FLOWKIT_LOG_LEVEL", "ERROR")
    measured = commit()  # before the code may change
    verdicts = list(run(options.parts))
    table = Table("attack", "tried", "seen", "", title=f"commit {measured}", title_justify="left")
    for one in verdicts:
        table.add_row(one.attack, one.tried, one.seen, "held" if one.held else "did not hold")
    console = Console()
    console.width = max(console.width, NARROW)
    console.print(table)
    return 0 if all(one.held for one in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
