"""Many runs on all cores, of seeds and of mutants of the engine."""

import gc
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import count, islice
from multiprocessing import get_context
from typing import Any, NamedTuple

from tests.simulation.mutants import MUTANTS, SHAPES
from tests.simulation.run import Result, shape, simulate

SHARE = 20
"""Seeds that a process runs at once."""
ACCEPTED = {
    "end_solo": "only a worker that drains with a suspect which it ran alone, and could not bring to its end, is there",
}
"""Where faults may have hit less often than is asked for, and why."""
MUTANT_RUNS = 250
"""A mutant has to be caught within so many runs of the shape that may show it."""


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
        for (where, _), visits in self.met.items():
            places[where] += visits
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
        f"{kind} at {where}: {often} in {places[where]:,} visits"
        for where, kinds in hits.items()
        for kind, often in kinds.items()
        if often < least and where not in ACCEPTED
    ]


def run_all(first: int, seeds: int, jobs: int) -> Iterator[Result]:
    """The results of these seeds, as they come."""
    shares = [range(start, min(start + SHARE, first + seeds)) for start in range(first, first + seeds, SHARE)]
    with _mapped(jobs) as each:
        for results in each(run_share, shares):
            yield from results


@contextmanager
def _mapped(jobs: int) -> Iterator[Any]:
    """`map` over so many processes; this one, if it is one."""
    if jobs == 1:
        _prepare()
        yield map
    else:
        with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_prepare) as pool:
            yield pool.map


def _prepare() -> None:
    """What is loaded stays: no collection between two runs goes through it. Nothing is logged."""
    gc.freeze()
    logging.disable(logging.CRITICAL)


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


def mutants(jobs: int) -> Iterator[tuple[str, tuple[int, Result] | None]]:
    """Each mutant; the first run in which the oracle saw it, and how many of its shape that took."""
    with _mapped(jobs) as each:
        yield from zip(MUTANTS, each(catch, MUTANTS), strict=True)


def catch(name: str) -> tuple[int, Result] | None:
    """The first run in which the oracle sees a mutant, and how many of its shape that took."""
    seeds = islice((seed for seed in count() if shape(seed) is SHAPES[name]), MUTANT_RUNS)
    results = (simulate(seed, mutate=MUTANTS[name]) for seed in seeds)
    return next(((number, result) for number, result in enumerate(results, 1) if result.failure), None)
