"""Output of commands: tables on a terminal, plain text in a pipe, or JSON on request."""

import json
import sys
from collections.abc import Iterable, Sequence
from textwrap import indent

from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions
from rich.table import Table
from rich.text import Text

from flowkit.plain import plain

FOLDED = 20
"""Least width of a column of sentences, which may be folded."""
GAP = 2


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table. Numbers are aligned right; cells are never read as markup, because messages may supply them."""
    _page(title, columns, list(rows))


def tables(title: str, columns: Sequence[str], pages: Iterable[Sequence[Sequence[object]]]) -> None:
    """Print a table page by page, so that a long one takes no more memory. Each page has its own column widths."""
    rows: Sequence[Sequence[object]] = ()
    for number, rows in enumerate(pages):
        _page("" if number else title, () if number else columns, rows)
    if not rows:
        _page(title, columns, rows)


def _page(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    width = len(columns or rows[0])
    numeric = [bool(rows) and all(isinstance(row[n], int | float) for row in rows) for n in range(width)]
    if not sys.stdout.isatty():
        _lines(title, columns, rows, numeric)
        return
    shown = Table(
        title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold",
        show_header=bool(columns),
    )  # fmt: skip
    cells = [[cell(value) for value in row] for row in rows]
    least = [_least(texts) for texts in zip(columns or [""] * width, *cells, strict=True)]
    for column, right, wide in zip(columns or [""] * width, numeric, least, strict=True):
        shown.add_column(column, justify="right" if right else "left", overflow="fold", min_width=wide)
    for texts in cells:
        shown.add_row(*map(Text, texts))
    console = Console()
    # The terminal breaks longer lines itself.
    console.size = ConsoleDimensions(max(console.width, sum(least) + GAP * (width - 1)), console.height)
    console.print(shown)


def _least(texts: Sequence[str]) -> int:
    """The least width of a column. A single word, such as an id, is never folded, so that it can be copied."""
    return max(min(cell_len(text), FOLDED) if " " in text else cell_len(text) for text in texts)


def _lines(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], numeric: Sequence[bool]) -> None:
    """Print a table for a pipe: each row is one line of any width, for grep and cut."""
    lines = [tuple(columns)] if columns else []
    lines += [tuple(cell(value) for value in row) for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for heading in [title] if title else []:
        print(heading)
    for line in lines:
        padded = []
        for text, width, right in zip(line, widths, numeric, strict=True):
            gap = " " * (width - cell_len(text))
            padded.append(gap + text if right else text + gap)
        print("  ".join(padded))


def cell(value: object) -> str:
    """One value as text on one line, without control characters."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return plain("" if value is None else str(value))


def as_json(value: object) -> None:
    """Print JSON in ASCII, which every terminal and locale can show."""
    print(json.dumps(value, indent=2))


def as_json_list(values: Iterable[object]) -> None:
    """Print a list as JSON in ASCII, item by item as they arrive."""
    before = "["
    for value in values:
        print(before)
        print(indent(json.dumps(value, indent=2), "  "), end="")
        before = ","
    print("[]" if before == "[" else "\n]")
