"""Many runs, on all cores: seeds, and mutants of the engine."""

import gc
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

from tests.simulation.mutants import MUTANTS
from tests.simulation.run import Result, simulate

SHARE = 20
"""Seeds that a process runs at once."""
ACCEPTED = {
    "desist": "only a worker that drains with a suspect which it ran alone, and could not bring to its end, is there",
}
"""Where faults may have hit less often than is asked for, and why."""
MUTANT_SEEDS = 400
"""A mutant has to be caught within so many seeds."""


class Report(NamedTuple):
    """What many runs came to."""

    failures: list[Result]
    faults: Counter[tuple[str, str]]
    """(kind, where) -> how often."""
    counts: Counter[str]
    met: Counter[tuple[str, Sequence[str]]]
    """The points by name, and what could break there."""
    points: int
    seconds: float
    """Of virtual time."""

    def places(self) -> Counter[str]:
        """How often each place was met."""
        places: Counter[str] = Counter()
        for (where, _), count in self.met.items():
            places[where] += count
        return places

    def hits(self) -> dict[str, dict[str, int]]:
        """How often each kind of fault hit each place where it could, also never."""
        hits: dict[str, dict[str, int]] = {}
        for where, kinds in self.met:
            for kind in kinds:
                hits.setdefault(where, {})[kind] = self.faults[kind, where]
        return {where: dict(sorted(kinds.items())) for where, kinds in sorted(hits.items())}


def seldom(hits: Mapping[str, Mapping[str, int]], places: Mapping[str, int], least: int) -> list[str]:
    """The faults that hit a place less often than that, or never, other than where that is accepted."""
    return [
        f"{kind} at {where}: {count} in {places[where]:,} visits"
        for where, kinds in hits.items()
        for kind, count in kinds.items()
        if count < least and where not in ACCEPTED
    ]


def run_all(first: int, seeds: int, jobs: int) -> Iterator[Result]:
    """The results of these seeds, as they come."""
    shares = [range(start, min(start + SHARE, first + seeds)) for start in range(first, first + seeds, SHARE)]
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_keep) as pool:
        for results in pool.map(run_share, shares):
            yield from results


def _keep() -> None:
    """What is loaded stays: no collection between two runs goes through it."""
    gc.freeze()


def run_share(seeds: range) -> list[Result]:
    return [simulate(seed) for seed in seeds]


def merge(results: Iterable[Result]) -> Report:
    report = Report([], Counter(), Counter(), Counter(), 0, 0.0)
    points, seconds = 0, 0.0
    for result in results:
        if result.failure:
            report.failures.append(result)
        report.faults.update((fault.kind, fault.where) for fault in result.faults)
        report.counts.update(result.counts)
        report.met.update(result.met)
        points += result.points
        seconds += result.seconds
    return report._replace(points=points, seconds=seconds)


def mutants(jobs: int) -> Iterator[tuple[str, Result | None]]:
    """Each mutant, and the first run in which the oracle saw it."""
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        yield from zip(MUTANTS, pool.map(catch, MUTANTS), strict=True)


def catch(name: str) -> Result | None:
    """The first run in which the oracle sees a mutant."""
    results = (simulate(seed, mutate=MUTANTS[name]) for seed in range(MUTANT_SEEDS))
    return next((result for result in results if result.failure), None)
