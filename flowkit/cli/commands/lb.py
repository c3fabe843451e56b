"""Commands that print configurations of load balancers."""

from typing import Annotated

import typer

from flowkit.cli.commands.options import NOTHING, group

commands = group("Print configurations of load balancers.")
Instances = Annotated[list[str], typer.Argument(metavar="HOST:PORT...", help="Addresses at which instances serve HTTP")]
Listen = Annotated[str, typer.Option(help="Address or port at which the balancer listens")]


@commands.command(name="haproxy", epilog=NOTHING)
def lb_haproxy(
    instances: Instances,
    listen: Listen = ":8000",
    agent_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port at which instances answer agent checks")
    ] = None,
) -> None:
    """Print a configuration of HAProxy for these instances."""
    from flowkit.cli.balancer import haproxy

    haproxy(instances, listen, agent_port)


@commands.command(name="nginx", epilog=NOTHING)
def lb_nginx(instances: Instances, listen: Listen = "8000") -> None:
    """Print a configuration of nginx for these instances."""
    from flowkit.cli.balancer import nginx

    nginx(instances, listen)
