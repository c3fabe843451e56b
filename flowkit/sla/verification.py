"""Verification of an agreement: under a steady load, instances are killed, frozen and replaced; each clause is judged.

The load is that of the normal service. Time is cut into windows of one second. A window is *below normal* if fewer of
its requests succeeded than the normal service promises, or its response time at the promised percentile is too long.
It is *below the minimum* if fewer of its requests succeeded in time than the minimum service promises.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from flowkit.sla.agreement import Agreement
from flowkit.sla.load import Answer, Load, Request, during, percentile
from flowkit.sla.planning import budget
from flowkit.sla.testbed import HOST, Node, Testbed, wait_until

WINDOW_SECONDS = 1.0
FROZEN_SECONDS = 5.0
SETTLED_SECONDS = 60.0
ENOUGH = 0.98
"""The part of a promised number of requests that is enough in a window: the others may fall into the next window."""


class Event(NamedTuple):
    """A fault that the drill caused, from `begin` to `end`."""

    what: str
    begin: float
    """Seconds after the load began."""
    end: float


class Window(NamedTuple):
    """The measured service in one second."""

    begin: float
    tps: float
    response: float
    """Seconds, at the percentile of the agreement."""
    failed: int
    below_normal: bool
    below_minimum: bool


class Clause(NamedTuple):
    """One promise and its measurement."""

    promise: str
    measured: str
    kept: bool


class Verdict(NamedTuple):
    """The result of a verification."""

    events: Sequence[Event]
    windows: Sequence[Window]
    clauses: Sequence[Clause]

    @property
    def kept(self) -> bool:
        return all(one.kept for one in self.clauses)


class Drill:
    """Breaks the instances of a test bed in several ways, and notes when."""

    def __init__(self, testbed: Testbed, load: Load, seconds: float) -> None:
        """`seconds`: the time without faults before and after each event."""
        self._nodes = testbed.nodes
        self._load = load
        self._seconds = seconds
        self.events: list[Event] = []

    def run(self, kills: int) -> None:
        """Kill `kills` instances, freeze one, replace all. Blocks. Raises FlowKitError if one does not come back."""
        self._calm()
        with self._event(f"{kills} of {len(self._nodes)} killed"):
            for node in self._nodes[:kills]:
                node.kill()
            self._calm()
            self._bring_back(self._nodes[:kills])
        self._calm()
        with self._event("one frozen"):
            self._nodes[-1].freeze()
            time.sleep(FROZEN_SECONDS)
            self._nodes[-1].thaw()
        self._calm()
        with self._event("all replaced, one by one"):
            for node in self._nodes:
                node.end()
                self._bring_back([node])
        self._calm()

    def _calm(self) -> None:
        time.sleep(self._seconds)

    def _bring_back(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            node.start()
        for node in nodes:
            wait_until(lambda: node.ready, "an instance is not ready")  # noqa: B023

    @contextmanager
    def _event(self, what: str) -> Iterator[None]:
        begin = self._load.now
        yield
        self.events.append(Event(what, begin, self._load.now))


def verify(
    app: str,
    agreement: Agreement,
    request: Request,
    nodes: int,
    kills: int,
    seconds: float,
    settled: Callable[[Sequence[str]], Mapping[str, int]],
) -> Verdict:
    """Run `nodes` instances of an app, break them, and judge the agreement. `settled` takes the ids of accepted
    messages, waits until they finish, and returns state -> count. Blocks for about ten times `seconds`, and for
    `settled`.

    Raises ConfigError, or FlowKitError if an instance does not start.
    """
    with Testbed([Node(app) for _ in range(nodes)]) as testbed:
        load = Load(HOST, testbed.port, request, agreement.normal.tps)
        try:
            drill = Drill(testbed, load, seconds)
            drill.run(kills)
        finally:
            answers = load.stop()
        accepted = [one.id for one in answers if one.good]
        states = settled(accepted)
    seen = windows(answers, agreement)
    return Verdict(drill.events, seen, clauses(agreement, drill.events, seen, answers, states))


def windows(answers: Sequence[Answer], agreement: Agreement) -> list[Window]:
    """The measured service, second by second."""
    normal, minimum = agreement.normal, agreement.minimum
    last = max((one.due for one in answers), default=0.0)
    found = []
    for number in range(int(last / WINDOW_SECONDS)):
        begin = number * WINDOW_SECONDS
        here = during(answers, begin, begin + WINDOW_SECONDS)
        good = [one for one in here if one.good]
        tps = len(good) / WINDOW_SECONDS
        # A failed request has no response time: it counts as infinitely slow.
        took = [one.took if one.good else float("inf") for one in here]
        response = percentile(took, normal.percentile)
        in_time = sum(one.took <= minimum.response for one in good) / WINDOW_SECONDS
        found.append(
            Window(
                begin,
                tps,
                response,
                len(here) - len(good),
                tps < normal.tps * ENOUGH or response > normal.response,
                in_time < minimum.tps * ENOUGH,
            )
        )
    return found


def clauses(
    agreement: Agreement,
    events: Sequence[Event],
    seen: Sequence[Window],
    answers: Sequence[Answer],
    states: Mapping[str, int],
) -> list[Clause]:
    """The promises of an agreement, each with its measurement."""
    normal, minimum = agreement.normal, agreement.minimum
    calm = [one for one in seen if not any(event.begin - 1 < one.begin < event.end + 1 for event in events)]
    below_normal = sum(one.below_normal for one in seen) * WINDOW_SECONDS
    down = sum(one.below_minimum for one in seen) * WINDOW_SECONDS
    permitted = budget(agreement.availability).per_week_s
    failed = [one for one in answers if not one.good]
    undisturbed = sum(one.below_normal for one in calm)
    lost = sum(count for state, count in states.items() if state != "applied")
    return [
        Clause(
            f"normal service while nothing is broken: {normal.tps:g} TPS, {normal.percentile:g} % in "
            f"{normal.response:g} s",
            f"{undisturbed} of {len(calm)} seconds below it",
            bool(calm) and not undisturbed,
        ),
        Clause(
            f"not more than {minimum.at_most:g} s below normal in {minimum.per:g} s",
            f"{below_normal:g} s, of which {down:g} s below the minimum",
            below_normal <= minimum.at_most,
        ),
        Clause(
            f"available {agreement.availability:g} %: {permitted:g} s of downtime a week",
            f"{down:g} s below the minimum of {minimum.tps:g} TPS in {minimum.response:g} s",
            down <= permitted,
        ),
        Clause("no request fails, after one more try", f"{len(failed)} of {len(answers)} failed", not failed),
        Clause(
            "every accepted message is applied",
            ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "nothing was accepted",
            bool(states) and not lost,
        ),
    ]


def as_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict as a JSON object."""
    return {
        "kept": verdict.kept,
        "clauses": [one._asdict() for one in verdict.clauses],
        "events": [one._asdict() for one in verdict.events],
        "windows": [one._asdict() for one in verdict.windows],
    }
