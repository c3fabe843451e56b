"""The vendored data: the flights table's rows of January 2013, and the carriers' names."""

import csv
import gzip
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent


def rows() -> Iterator[dict[str, str]]:
    """Every row of the flights table, as column -> text of the file."""
    with gzip.open(FOLDER / "flights-2013-01.csv.gz", "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def carriers() -> dict[str, str]:
    """Carrier code -> name."""
    with open(FOLDER / "carriers.csv", encoding="utf-8", newline="") as file:
        return {row["carrier"]: row["name"] for row in csv.DictReader(file)}
