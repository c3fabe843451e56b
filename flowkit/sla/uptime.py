"""How available a service has been, by what its workers noted, and how much of the permitted downtime is left."""

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
    """What is known of a time that ends now."""

    seconds: float
    """How far back it goes: at most to the first note."""
    outages: Sequence[Outage]
    permitted: float
    """Seconds of downtime in so long a time."""

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
"""Workers note each second that they are up: shorter gaps are none."""


def record(uptime: Sequence[tuple[float, float]], seconds: float, availability: float) -> Record:
    """What these times, from and until in seconds before now, come to over so many seconds, against an availability in
    percent. Before the first note nothing is known, and nothing counted."""
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
