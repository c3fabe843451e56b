"""How many nodes an agreement needs, and how likely each level is missed with so many.

Instances fail independently of each other, so the number of those that are up is binomial:
P(k of n) = C(n, k) a^k (1 - a)^(n - k), with a, the part of the time that one of them is up.
"""

from collections.abc import Mapping
from math import ceil, exp, fsum, lgamma, log, log1p, prod
from typing import NamedTuple

from flowkit.errors import ConfigError
from flowkit.sla.agreement import WEEK_SECONDS, Agreement

YEAR_SECONDS = 365 * 86400.0
MOST_NODES = 1000
FAILURES = (1, 2, 3)
"""The numbers of failures at once that are planned for."""


class Budget(NamedTuple):
    """How long a service may be down."""

    availability: float
    """In percent."""
    per_week_s: float
    per_year_s: float
    """Of 365 days."""


class Choice(NamedTuple):
    """So many instances, and how often, as a part of the time, each level is missed with them."""

    nodes: int
    below_normal: float
    """Of the instances alone: they are fewer than the normal service needs."""
    below_minimum: float
    """They are fewer than the minimum service needs, or a tier that every request needs is down."""
    kept: bool
    """Whether both the availability and the time below normal are within what was agreed."""


class Plan(NamedTuple):
    """What an agreement needs."""

    for_normal: int
    """Instances that bear the normal service."""
    for_minimum: int
    """Instances that bear the minimum service."""
    high_availability: int
    """Instances of which one may fail, and the minimum service is given."""
    fault_tolerance: Mapping[int, int]
    """Number of failures at once -> instances with which the normal service is given all the same."""
    choices: Mapping[int, Choice]
    """Number of instances -> what it comes to."""
    tiers: Mapping[str, float]
    """Tier -> the part of the time in which it is up."""
    single_points: tuple[str, ...]
    """What ends the service when one node of it fails, whatever the instances do."""


def budget(availability: float) -> Budget:
    """The permitted downtime of an availability in percent, above 0 and below 100."""
    down = 1 - availability / 100
    return Budget(availability, round(down * WEEK_SECONDS, 3), round(down * YEAR_SECONDS, 3))


def plan(agreement: Agreement) -> Plan:
    """The instances that an agreement needs, and what each number of them comes to.

    Raises ConfigError when it needs more than a thousand.
    """
    normal, minimum, node = agreement.normal, agreement.minimum, agreement.node
    for_normal, for_minimum = ceil(normal.tps / node.tps), ceil(minimum.tps / node.tps)
    if for_normal > MOST_NODES:
        raise ConfigError(
            f"normal.tps = {normal.tps:g} at node.tps = {node.tps:g} takes {for_normal:,} nodes; a plan is for "
            f"{MOST_NODES:,} at most: give a node more, or split the service"
        )
    high_availability = max(for_normal, for_minimum + 1)
    fault_tolerance = {failures: for_normal + failures for failures in FAILURES}
    tiers = {name: 1 - fewer(one.nodes, one.needed, one.up) for name, one in agreement.tiers.items()}
    choices = {
        nodes: choice(agreement, nodes, for_normal, for_minimum, tiers)
        for nodes in sorted({high_availability, *fault_tolerance.values()})
    }
    single = tuple(name for name, one in agreement.tiers.items() if one.nodes == one.needed)
    return Plan(for_normal, for_minimum, high_availability, fault_tolerance, choices, tiers, single)


def choice(agreement: Agreement, nodes: int, for_normal: int, for_minimum: int, tiers: Mapping[str, float]) -> Choice:
    """What so many instances come to, beside tiers that are up for these parts of the time."""
    minimum, one_up, reachable = agreement.minimum, agreement.node.up, prod(tiers.values())
    below_normal = fewer(nodes, for_normal, one_up)
    below_minimum = 1 - reachable * (1 - fewer(nodes, for_minimum, one_up))
    kept = (
        below_minimum <= 1 - agreement.availability / 100
        and (1 - reachable * (1 - below_normal)) * minimum.per <= minimum.at_most
    )
    return Choice(nodes, below_normal, below_minimum, kept)


def fewer(nodes: int, needed: int, one_up: float) -> float:
    """The probability that fewer than `needed` of so many are up, each with the probability `one_up` in (0, 1)."""
    up, down = log(one_up), log1p(-one_up)
    ways = [lgamma(nodes + 1) - lgamma(k + 1) - lgamma(nodes - k + 1) for k in range(min(needed, nodes + 1))]
    return min(1.0, fsum(exp(way + k * up + (nodes - k) * down) for k, way in enumerate(ways)))
