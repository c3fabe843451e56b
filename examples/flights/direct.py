"""The expected results of the flows, computed directly in a loop over the rows."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple

ALERT_MINUTES = 120


class Late(NamedTuple):
    """A flight that raised an alert."""

    carrier: str
    number: int
    day: date
    delay: int


@dataclass
class Day:
    """The flights of one carrier on one day. Delays are in minutes; `delay` is the sum over its flights."""

    flown: int = 0
    cancelled: int = 0
    delay: int = 0
    most: int | None = None


@dataclass
class Results:
    """The results of the flights table: days by carrier and date, and alerts."""

    days: dict[tuple[str, date], Day] = field(default_factory=dict)
    alerts: list[Late] = field(default_factory=list)

    def day(self, carrier: str, day: date) -> Day:
        return self.days.setdefault((carrier, day), Day())

    @property
    def flown(self) -> int:
        return sum(day.flown for day in self.days.values())

    @property
    def cancelled(self) -> int:
        return sum(day.cancelled for day in self.days.values())


def compute(rows: Iterable[dict[str, str]]) -> Results:
    """The results of these rows."""
    results = Results()
    for row in rows:
        when = date(int(row["year"]), int(row["month"]), int(row["day"]))
        day = results.day(row["carrier"], when)
        if row["dep_time"] == "NA":
            day.cancelled += 1
            continue
        delay = int(row["dep_delay"])
        day.flown += 1
        day.delay += delay
        day.most = delay if day.most is None else max(day.most, delay)
        if delay > ALERT_MINUTES:
            results.alerts.append(Late(row["carrier"], int(row["flight"]), when, delay))
    results.alerts.sort()
    return results
