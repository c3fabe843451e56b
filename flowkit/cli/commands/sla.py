"""Commands of the service level agreement."""

from pathlib import Path
from typing import Annotated

import typer

from flowkit.cli.commands.options import EVERYTHING, NOTHING, STORE, AppName, Json, group

commands = group("Plan, measure and verify a service level agreement.")
Send = Annotated[str, typer.Option(help="The request, such as POST /orders; {n} is its number")]
Content = Annotated[str, typer.Option(help="The content of the request, as JSON; {n} is its number")]


@commands.command(name="budget", epilog=NOTHING)
def sla_budget(
    availability: Annotated[list[float], typer.Argument(metavar="PERCENT...", help="Such as 99 99.9")],
    as_json: Json = False,
) -> None:
    """Show the downtime that an availability permits."""
    from flowkit.cli.sla import budget

    budget(availability, as_json)


@commands.command(name="init", epilog=NOTHING)
def sla_init(
    agreement: Annotated[Path, typer.Argument(metavar="[SLA.TOML]", help="The file to write")] = Path("sla.toml"),
) -> None:
    """Write an agreement with examples and comments, for you to change.

    The command does not overwrite a file.
    """
    from flowkit.cli.sla import init

    init(agreement)


@commands.command(name="plan", epilog=NOTHING)
def sla_plan(
    agreement: Annotated[Path, typer.Argument(metavar="SLA.TOML", help="The agreement")], as_json: Json = False
) -> None:
    """Show how many nodes an agreement needs, and why.

    The command also shows how likely that number misses each level, and the single points of failure.
    """
    from flowkit.cli.sla import plan

    raise typer.Exit(plan(agreement, as_json))


@commands.command(name="apply", epilog=STORE)
def sla_apply(
    app: Annotated[str, typer.Argument(metavar="APP", help="The name of the app, as flowkit status shows it")],
    agreement: Annotated[Path | None, typer.Argument(metavar="SLA.TOML", help="The agreement, unless --off")] = None,
    workers: Annotated[int, typer.Option(min=1, help="The number of worker processes of a node")] = 1,
    off: Annotated[bool, typer.Option("--off", help="Never reduce the service")] = False,
) -> None:
    """Let flows of low priority= rest while workers are missing.

    Workers are missing while fewer are ready than the normal service needs. The routes of resting flows answer 503, and
    their messages wait. With no more workers than the minimum service needs, only flows of the highest priority run.
    """
    from flowkit.cli.direct import reduce

    if (agreement is None) is not off:
        raise typer.BadParameter("name either the agreement or --off")
    reduce(app, agreement, workers)


@commands.command(name="report", epilog=STORE)
def sla_report(
    app: Annotated[str, typer.Argument(metavar="APP", help="The name of the app, as flowkit status shows it")],
    agreement: Annotated[Path, typer.Argument(metavar="SLA.TOML", help="The agreement")],
    last: Annotated[str, typer.Option(help="The time to look back")] = "7d",
    as_json: Json = False,
) -> None:
    """Show how available an app has been, against the agreement.

    The command also shows the rest of the permitted downtime. Deployments count like failures. Exit code 1 if more
    downtime than permitted is spent.
    """
    from flowkit.cli.sla import report

    raise typer.Exit(report(app, agreement, last, as_json))


@commands.command(name="measure", epilog=EVERYTHING)
def sla_measure(
    app: AppName,
    send: Send,
    content: Content = "",
    response: Annotated[str, typer.Option(help="The longest response time")] = "250ms",
    percentile: Annotated[float, typer.Option(min=1, max=100, help="The percent of requests within that time")] = 99.0,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds for which each rate is tried")] = 5.0,
    as_json: Json = False,
) -> None:
    """Measure how many requests per second one instance of APP sustains on this machine.

    The requests are stored in the database of FLOWKIT_DATABASE_URL, and applied: use a database made for this.
    """
    from flowkit.cli.verify import measure

    raise typer.Exit(measure(app, send, content, response, percentile, seconds, as_json))


@commands.command(name="verify", epilog=EVERYTHING)
def sla_verify(
    app: AppName,
    agreement: Annotated[Path, typer.Argument(metavar="SLA.TOML", help="The agreement")],
    send: Send,
    content: Content = "",
    nodes: Annotated[int, typer.Option(min=2, max=100, help="The number of instances")] = 3,
    kill: Annotated[int, typer.Option(min=1, help="The number of instances that are killed at once")] = 1,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds to wait before and after each event")] = 10.0,
    chart: Annotated[Path | None, typer.Option(help="Draw a chart of the events into an SVG or PNG file")] = None,
    as_json: Json = False,
) -> None:
    """Test whether APP keeps an agreement while instances fail.

    Instances are killed, frozen and replaced under load, behind HAProxy. The requests are stored in the database of
    FLOWKIT_DATABASE_URL, and applied: use a database made for this. Exit code 1 if a clause is broken.
    """
    from flowkit.cli.verify import Plan, verify

    raise typer.Exit(verify(app, agreement, Plan(send, content, nodes, kill, seconds), chart, as_json))
