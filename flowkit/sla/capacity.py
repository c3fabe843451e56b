"""The capacity of one instance: the highest load at which it keeps a response time, by doubling and then bisecting."""

from collections.abc import Callable
from time import sleep
from typing import NamedTuple

from flowkit.errors import ConfigError
from flowkit.sla.load import Load, Request, percentile
from flowkit.sla.testbed import HOST, Node, wait_until

FIRST_TPS = 25.0
MOST_TPS = 100_000.0
PRECISE = 1.1
"""The search ends when the lowest load that failed is at most this many times the highest that was sustained."""
SETTLING_SECONDS = 1.0
ENOUGH = 0.98


class Step(NamedTuple):
    """One load that was tried."""

    tps: float
    response: float
    """Response time in seconds, at the percentile."""
    failed: int
    behind: int
    """Messages still pending when the load ended."""
    borne: bool


def measure(
    app: str, request: Request, response: float, percent: float, seconds: float, unfinished: Callable[[], int]
) -> list[Step]:
    """Try loads for `seconds` each. Returns the steps; the highest sustained one is the capacity. Blocks.

    A load is sustained if every request succeeded, `percent` of them within `response` seconds, and the flows kept up:
    `unfinished` counts at most the messages of one second. Raises ConfigError if a request is answered with 3xx or 4xx,
    and FlowKitError if the instance does not start or the flows do not finish.
    """
    node, steps = Node(app), list[Step]()
    node.start()
    try:
        wait_until(lambda: node.ready, "the instance is not ready")
        low, high, tps = 0.0, MOST_TPS, FIRST_TPS
        while low * PRECISE < high and tps < MOST_TPS:
            step = _try(node, request, tps, response, percent, seconds, unfinished)
            steps.append(step)
            low, high = (tps, high) if step.borne else (low, tps)
            tps = tps * 2 if high == MOST_TPS else (low + high) / 2
            if high <= FIRST_TPS:
                break
            wait_until(lambda: unfinished() == 0, "the flows did not finish")
    finally:
        node.kill()
    return steps


def _try(
    node: Node,
    request: Request,
    tps: float,
    response: float,
    percent: float,
    seconds: float,
    unfinished: Callable[[], int],
) -> Step:
    load = Load(HOST, node.port, request, tps)
    sleep(SETTLING_SECONDS + seconds)
    behind = unfinished()
    answers = [one for one in load.stop() if one.due >= SETTLING_SECONDS]
    took = percentile([one.took if one.good else float("inf") for one in answers], percent)
    failed = sum(not one.good for one in answers)
    for one in answers:
        if one.refused:
            raise ConfigError(
                f"{request.method} {request.path} is answered with {one.status}: see --send and --content"
            )
    borne = not failed and took <= response and behind <= tps and len(answers) >= tps * seconds * ENOUGH
    return Step(tps, took, failed, behind, borne)
