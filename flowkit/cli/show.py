"""How commands show things: tables on a terminal, plain text when piped, JSON when asked for."""

import json
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flowkit import duration
from flowkit.cli.plain import plain

PIPED_WIDTH = 100_000
"""Wide enough that a row is a line, for grep and cut."""


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table. Numbers are set right; what a message brought is never read as markup."""
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    rows = list(rows)
    for number, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[number], int | float) for row in rows)
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(cell(value) for value in row))
    console.print(shown)


def cell(value: object) -> Text:
    """One value as text on one line, without control characters."""
    if isinstance(value, int) and not isinstance(value, bool):
        return Text(f"{value:,}")
    return Text(plain("" if value is None else str(value), ""))


def ago(seconds: float | None) -> str:
    """A time span for people."""
    if seconds is None:
        return "–"
    return duration.text(round(max(0.0, seconds), 1 if seconds < 10 else 0))


def as_json(value: object) -> None:
    """Print JSON and nothing else, in ASCII: any terminal and any locale can take it."""
    print(json.dumps(value, indent=2))
