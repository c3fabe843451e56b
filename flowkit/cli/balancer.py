"""`flowkit lb`: a configuration of a load balancer."""

from collections.abc import Sequence

from flowkit.web import balancer


def haproxy(addresses: Sequence[str], listen: str, agent_port: int | None) -> None:
    """Print that of HAProxy."""
    print(balancer.haproxy([balancer.instance(one) for one in addresses], listen, agent_port), end="")


def nginx(addresses: Sequence[str], listen: str) -> None:
    """Print that of nginx."""
    print(balancer.nginx([balancer.instance(one) for one in addresses], listen), end="")
