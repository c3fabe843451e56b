"""Reports of measurements: tables on the terminal, and a file."""

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.database import Database, circumstances
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
    "servers CPU\nµs/message",
    *(f"{name} ms" for name in PERCENTILES),
)


class Report:
    """Collects results."""

    def __init__(self, options: dict[str, object]) -> None:
        self._results: dict[str, Any] = {
            **circumstances(),
            "options": options,
            "latency_rate": RATE,
            "databases": {},
        }

    def add(self, database: Database, style: Style, speed: dict[str, Any], waits: list[dict[str, Any]]) -> None:
        """Keep the results of one style on one database, and say them in a line."""
        entry = self._results["databases"].setdefault(database.name, {"version": database.version, "styles": {}})
        entry["styles"][style] = {"throughput": speed, "latency": waits}
        low, high = speed["ratio_range"]
        print(f"{database.name}, {TITLES[style]}: {speed['ratio']} ({low}–{high}) × the naive loop's messages/s")
        for wait in waits[1:]:
            ratios = ", ".join(f"{name} {ratio} ×" for name, ratio in wait["ratio"].items())
            print(f"  latency of {wait['contender']}: {ratios}", flush=True)

    def add_waiting(self, database: Database, results: dict[str, float]) -> None:
        """Keep how many messages wait for the network at once, and say it in a line."""
        self._results["databases"][database.name]["waiting"] = results
        print(
            f"{database.name}, 500 async handlers that wait 100 ms each: {results['messages_per_second']:,} "
            "messages/s, "
            f"{results['worker_cpu_us_per_message']} µs of CPU each; longest silence "
            f"{results['longest_silence_seconds']} s, {results['lost_connections']} connections lost",
            flush=True,
        )

    def add_telemetry(self, database: Database, results: dict[str, dict[str, float]]) -> None:
        """Keep what telemetry costs, and say it in a line."""
        self._results["telemetry"] = {"database": database.name, "shares": results}
        costs = ", ".join(
            f"{share}: {one['worker_cpu_us_per_message']} µs ({one['ratio']} ×)" for share, one in results.items()
        )
        print(f"{database.name}, worker CPU for each message by share of traces recorded: {costs}", flush=True)

    def show(self) -> None:
        """Print everything as a table."""
        found = self._results
        table = Table(*_COLUMNS, title=f"inbox + business row + message onward; latency at {RATE} messages/s")
        for column in table.columns[3:]:
            column.justify = "right"
        for database, entry in found["databases"].items():
            for style, results in entry["styles"].items():
                speed, waits = results["throughput"], results["latency"]
                rows = {"naive loop": speed["naive"], "FlowKit": speed["flowkit"]}
                for wait in waits:
                    run = rows.get(wait["contender"])
                    table.add_row(
                        f"{database} {entry['version']}",
                        style,
                        wait["contender"],
                        *(_speed(run) if run else [""] * 4),
                        *(f"{ms} ({wait['ratio'][name]} ×)" for name, ms in wait["ms"].items()),
                    )
                low, high = speed["ratio_range"]
                table.add_row("", "", "ratio", f"{speed['ratio']} ×", f"{low}–{high}", end_section=True)
        Console(width=None if os.isatty(1) else 160).print(table)
        print(
            f"Medians. Python {found['python']}, {found['cores']} cores, one fdatasync {found['fdatasync_ms']} ms. "
            "SQLite works inside the worker: its CPU is the worker's."
        )

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._results, indent=2, ensure_ascii=False) + "\n")


def _speed(run: dict[str, Any]) -> list[str]:
    low, high = run["messages_per_second_range"]
    return [
        f"{run['messages_per_second']:,}",
        f"{low:,}–{high:,}",
        str(run["worker_cpu_us_per_message"]),
        str(run["servers_cpu_us_per_message"]),
    ]
