"""The measured availability of a service, from its workers' notes, against the permitted downtime."""

from collections.abc import Sequence
from typing import NamedTuple

from flowkit.sla.planning import budget


class Outage(NamedTuple):
    """A time without the minimum service, planned or not. In seconds before now."""

    begin: float
    end: float

    @property
    def seconds(self) -> float:
        return self.begin - self.end


class Record(NamedTuple):
    """The outages in a period that ends now."""

    seconds: float
    """Length of the period: at most back to the first note."""
    outages: Sequence[Outage]
    permitted: float
    """Permitted downtime in seconds in this period."""

    @property
    def down(self) -> float:
        return sum(one.seconds for one in self.outages)

    @property
    def availability(self) -> float:
        """In percent."""
        return 100 * (1 - self.down / self.seconds) if self.seconds else 100.0

    @property
    def kept(self) -> bool:
        return self.down <= self.permitted


GRAIN_SECONDS = 3.0
"""Shortest gap in seconds that counts as an outage: workers note each second that they are up."""


def record(uptime: Sequence[tuple[float, float]], seconds: float, availability: float) -> Record:
    """Find the outages in the last `seconds`. `uptime`: (from, until) of each time in which the service was up, in
    seconds before now. `availability`: in percent. The time before the first note does not count."""
    if not uptime:
        return Record(0.0, [], 0.0)
    outages, up_to = [], min(seconds, max(since for since, _ in uptime))
    known = up_to
    for since, until in sorted(uptime, reverse=True):
        if up_to - since > GRAIN_SECONDS:
            outages.append(Outage(up_to, since))
        up_to = min(up_to, until)
    if up_to > GRAIN_SECONDS:
        outages.append(Outage(up_to, 0.0))
    per_second = budget(availability).per_week_s / (7 * 86400)
    return Record(known, outages, per_second * known)
