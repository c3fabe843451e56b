"""Reduced service: which flows rest when fewer workers are ready than the normal service takes."""

from collections.abc import Collection
from math import ceil

from flowkit.model.flow import Flow


def shed(flows: Collection[Flow], ready: int, normal: int, minimum: int) -> frozenset[str]:
    """The names of the flows that rest, lowest priority first: none with `normal` workers, and all but those of the
    highest priority with `minimum` or fewer; in between in proportion to those that are missing."""
    priorities = sorted({flow.priority for flow in flows})
    missing, most = normal - ready, max(1, normal - minimum)
    levels = min(len(priorities) - 1, ceil(missing / most * (len(priorities) - 1))) if missing > 0 else 0
    return frozenset(flow.name for flow in flows if flow.priority in priorities[: max(0, levels)])
