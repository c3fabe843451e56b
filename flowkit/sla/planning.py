"""The number of nodes that an agreement needs, and the probability that each number misses a level of service.

Instances fail independently of each other, so the number of instances that are up is binomial:
P(k of n) = C(n, k) a^k (1 - a)^(n - k). Here a is the part of the time in which one instance is up.
"""

from collections.abc import Mapping
from math import ceil, exp, fsum, lgamma, log, log1p, prod
from typing import NamedTuple

from flowkit.errors import ConfigError
from flowkit.sla.agreement import WEEK_SECONDS, Agreement

YEAR_SECONDS = 365 * 86400.0
MOST_NODES = 1000
FAILURES = (1, 2, 3)
"""The numbers of simultaneous failures that a plan covers."""


class Budget(NamedTuple):
    """The permitted downtime of a service, in seconds."""

    availability: float
    """In percent."""
    per_week_s: float
    per_year_s: float
    """In a year of 365 days."""


class Choice(NamedTuple):
    """A number of instances, and the parts of the time, from 0 to 1, in which each level is missed."""

    nodes: int
    below_normal: float
    """Fewer instances are up than the normal service needs. Tiers do not count."""
    below_minimum: float
    """Fewer instances are up than the minimum service needs, or a tier is down."""
    kept: bool
    """Whether both the availability and the time below normal are within the agreement."""


class Plan(NamedTuple):
    """The instances that an agreement needs."""

    for_normal: int
    """Instances that sustain the normal service."""
    for_minimum: int
    """Instances that sustain the minimum service."""
    high_availability: int
    """Instances that sustain the normal service, and the minimum service after one failure."""
    fault_tolerance: Mapping[int, int]
    """Number of simultaneous failures -> instances that sustain the normal service despite them."""
    choices: Mapping[int, Choice]
    """Number of instances -> how often it misses each level."""
    tiers: Mapping[str, float]
    """Tier -> the part of the time, from 0 to 1, in which it is up."""
    single_points: tuple[str, ...]
    """Tiers without a spare node: if one of their nodes fails, the service ends."""


def budget(availability: float) -> Budget:
    """The permitted downtime at an availability in percent, above 0 and below 100."""
    down = 1 - availability / 100
    return Budget(availability, round(down * WEEK_SECONDS, 3), round(down * YEAR_SECONDS, 3))


def plan(agreement: Agreement) -> Plan:
    """The instances that an agreement needs, and how often each number misses a level of service.

    Raises ConfigError if the agreement needs more than MOST_NODES instances.
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
    """How often `nodes` instances miss each level. `tiers`: tier -> the part of the time in which it is up."""
    minimum, one_up, reachable = agreement.minimum, agreement.node.up, prod(tiers.values())
    below_normal = fewer(nodes, for_normal, one_up)
    below_minimum = 1 - reachable * (1 - fewer(nodes, for_minimum, one_up))
    kept = (
        below_minimum <= 1 - agreement.availability / 100
        and (1 - reachable * (1 - below_normal)) * minimum.per <= minimum.at_most
    )
    return Choice(nodes, below_normal, below_minimum, kept)


def fewer(nodes: int, needed: int, one_up: float) -> float:
    """The probability that fewer than `needed` of `nodes` are up. Each is up with probability `one_up` in (0, 1)."""
    up, down = log(one_up), log1p(-one_up)
    ways = [lgamma(nodes + 1) - lgamma(k + 1) - lgamma(nodes - k + 1) for k in range(min(needed, nodes + 1))]
    return min(1.0, fsum(exp(way + k * up + (nodes - k) * down) for k, way in enumerate(ways)))
