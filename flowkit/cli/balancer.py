"""`flowkit lb`: print the configuration of a load balancer."""

from collections.abc import Sequence

from flowkit.web import balancer


def haproxy(addresses: Sequence[str], listen: str, agent_port: int | None) -> None:
    """Print a configuration of HAProxy for these instances (HOST:PORT)."""
    print(balancer.haproxy([balancer.instance(one) for one in addresses], listen, agent_port), end="")


def nginx(addresses: Sequence[str], listen: str) -> None:
    """Print a configuration of nginx for these instances (HOST:PORT)."""
    print(balancer.nginx([balancer.instance(one) for one in addresses], listen), end="")
