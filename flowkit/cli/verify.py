"""`flowkit sla measure` and `flowkit sla verify`: the capacity of an instance, and whether an agreement is kept."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from flowkit import duration
from flowkit.app import App
from flowkit.cli import show
from flowkit.cli.load import load
from flowkit.errors import ConfigError
from flowkit.services import Services, connect
from flowkit.sla import agreement as agreements
from flowkit.sla import capacity, verification
from flowkit.sla.load import Request
from flowkit.web.route import Route

SETTLED_SECONDS = 60.0
LOOK_SECONDS = 0.2
AT_ONCE = 1000


class Plan(NamedTuple):
    """The options of `flowkit sla verify`."""

    send: str
    content: str
    nodes: int
    kill: int
    seconds: float


def measure(name: str, send: str, content: str, response: str, percentile: float, seconds: float, json: bool) -> int:
    """Print the capacity of one instance. Returns 1 if it does not sustain the lowest load. Blocks."""
    limit, request = duration.seconds(response, "--response"), _request(send, content)
    app, services = load(name), connect()
    try:
        steps = capacity.measure(
            name, request, limit, percentile, seconds, lambda: services.store.ledger.unfinished(list(app.flows))
        )
    finally:
        services.close()
    tps = max((one.tps for one in steps if one.borne), default=0.0)
    if json:
        show.as_json({"tps": tps, "steps": [one._asdict() for one in steps]})
    else:
        show.table(
            "The capacity of one instance",
            ["requests/s", f"{percentile:g} % in", "failed", "messages behind", ""],
            [
                (
                    f"{one.tps:,.0f}",
                    f"{one.response * 1e3:,.1f} ms",
                    one.failed,
                    one.behind,
                    "sustained" if one.borne else "",
                )
                for one in steps
            ],
        )
        print(f"\nOne instance sustains {tps:,.0f} requests a second: node.tps of sla.toml")
    return 0 if tps else 1


def verify(name: str, path: Path, plan: Plan, chart: Path | None, json: bool) -> int:
    """Test whether an agreement is kept, and print each clause. Returns 1 if a clause is broken. Blocks."""
    if plan.kill >= plan.nodes:
        raise ConfigError(
            f"--kill {plan.kill} of --nodes {plan.nodes} leaves none; write --nodes {plan.kill + 1} or more"
        )
    if chart is not None and chart.suffix not in (".svg", ".png"):
        raise ConfigError(f"--chart {chart}: write a name that ends with .svg or .png")
    agreed, request = agreements.read(path), _request(plan.send, plan.content)
    app, services = load(name), connect()
    try:
        verdict = verification.verify(
            name, agreed, request, plan.nodes, plan.kill, plan.seconds, lambda ids: _settled(app, services, ids)
        )
    finally:
        services.close()
    if chart is not None:
        from flowkit.sla.chart import draw

        draw(verdict, agreed, chart)
    if json:
        show.as_json(verification.as_json(verdict))
    else:
        show.table(
            f"{plan.nodes} instances, {plan.kill} of them killed at once",
            ["", "promise", "measured"],
            [("kept" if one.kept else "BROKEN", one.promise, one.measured) for one in verdict.clauses],
        )
    return 0 if verdict.kept else 1


def _request(send: str, content: str) -> Request:
    method, _, path = send.partition(" ")
    if not path.startswith("/") or not method.isalpha():
        raise ConfigError(f'--send {send}: write a method and a path, such as "POST /orders"')
    return Request(method.upper(), path, content)


def _settled(app: App, services: Services, ids: Sequence[str]) -> Counter[str]:
    """Wait until the flows have finished, for SETTLED_SECONDS at most. Returns the state of each request's message ->
    count."""
    end = time.monotonic() + SETTLED_SECONDS
    while services.store.ledger.unfinished(list(app.flows)) and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
    routed = [flow.name for flow in app.flows.values() if isinstance(flow.source, Route)]
    found: Counter[str] = Counter()
    for first in range(0, len(ids), AT_ONCE):
        some = ids[first : first + AT_ONCE]
        states = services.store.answers.states([(flow, app.name, id) for flow in routed for id in some])
        known = {id: state for (_, _, id), state in states.items()}  # a request matches one route
        found.update(known.get(id, "lost") for id in some)
    return found
