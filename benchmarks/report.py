"""What was measured, as tables on the terminal and as a file."""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.database import Database, sync_ms
from benchmarks.latency import PERCENTILES
from benchmarks.producer import RATE
from benchmarks.work import Style

TITLES: dict[Style, str] = {
    "none": "no database in the handler",
    "add": "db.add of one row",
    "statement": "one explicit statement",
}
_COLUMNS = (
    "",
    "handler",
    "",
    "messages/s",
    "range",
    "worker CPU\nµs/message",
    "database CPU\nµs/message",
    *(f"{name} ms" for name in PERCENTILES),
)


class Report:
    """Collects results."""

    def __init__(self, options: dict[str, object]) -> None:
        self._results: dict[str, Any] = {
            "date": time.strftime("%Y-%m-%d"),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "fdatasync_ms": sync_ms(),
            "options": options,
            "latency_rate": RATE,
            "databases": {},
        }

    def add(self, database: Database, style: Style, speed: dict[str, Any], wait: dict[str, Any]) -> None:
        """Keep the results of one style on one database, and say them in a line."""
        entry = self._results["databases"].setdefault(database.name, {"version": database.version, "styles": {}})
        entry["styles"][style] = {"throughput": speed, "latency": wait}
        low, high = speed["ratio_range"]
        print(
            f"{database.name}, {TITLES[style]}: {speed['ratio']} ({low}–{high}) × the naive loop's messages/s; latency "
            + ", ".join(f"{name} {ratio} ×" for name, ratio in wait["ratio"].items()),
            flush=True,
        )

    def show(self) -> None:
        """Print everything as a table."""
        found = self._results
        table = Table(*_COLUMNS, title=f"inbox + business row + message onward; latency at {RATE} messages/s")
        for column in table.columns[3:]:
            column.justify = "right"
        for database, entry in found["databases"].items():
            for style, results in entry["styles"].items():
                speed, wait = results["throughput"], results["latency"]
                for name in ("naive", "flowkit"):
                    run = speed[name]
                    low, high = run["messages_per_second_range"]
                    table.add_row(
                        f"{database} {entry['version']}",
                        style,
                        name,
                        f"{run['messages_per_second']:,}",
                        f"{low:,}–{high:,}",
                        str(run["worker_cpu_us_per_message"]),
                        str(run["database_cpu_us_per_message"]),
                        *(str(one) for one in wait[f"{name}_ms"].values()),
                    )
                low, high = speed["ratio_range"]
                ratios = (f"{one} ×" for one in wait["ratio"].values())
                table.add_row(
                    "", "", "ratio", f"{speed['ratio']} ×", f"{low}–{high}", "", "", *ratios, end_section=True
                )
        Console(width=None if os.isatty(1) else 140).print(table)
        print(
            f"Medians. Python {found['python']}, {found['cores']} cores, one fdatasync {found['fdatasync_ms']} ms. "
            "SQLite works inside the worker: its CPU is the worker's."
        )

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._results, indent=2, ensure_ascii=False) + "\n")
