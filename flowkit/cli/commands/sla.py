"""Commands of the service level agreement."""

from pathlib import Path
from typing import Annotated

import typer

from flowkit.cli.commands.options import EVERYTHING, NOTHING, STORE, AppName, Json, group

commands = group("Plan, measure and verify a service level agreement.")
Send = Annotated[str, typer.Option(help="Method and path of each request: POST /orders. {n} becomes its number")]
Content = Annotated[str, typer.Option(help="Content of each request, as JSON. {n} becomes its number")]


@commands.command(name="budget", epilog=NOTHING)
def sla_budget(
    availability: Annotated[
        list[float], typer.Argument(metavar="PERCENT...", help="Availabilities in percent, such as 99 99.9")
    ],
    as_json: Json = False,
) -> None:
    """Show the downtime that an availability permits."""
    from flowkit.cli.sla import budget

    budget(availability, as_json)


@commands.command(name="init", epilog=NOTHING)
def sla_init(
    agreement: Annotated[Path, typer.Argument(metavar="[SLA.TOML]", help="The file to write")] = Path("sla.toml"),
) -> None:
    """Write an agreement with examples and comments, to change it.

    An existing file is kept: exit code 2.
    """
    from flowkit.cli.sla import init

    init(agreement)


@commands.command(name="plan", epilog=NOTHING)
def sla_plan(
    agreement: Annotated[Path, typer.Argument(metavar="SLA.TOML", help="The agreement")], as_json: Json = False
) -> None:
    """Show how many instances an agreement needs, and why.

    The command also shows how much of the time each number of instances misses a level of service, and which parts are
    single points of failure. Exit code 1 if none of these numbers keeps the agreement.
    """
    from flowkit.cli.sla import plan

    raise typer.Exit(plan(agreement, as_json))


@commands.command(name="apply", epilog=STORE)
def sla_apply(
    app: Annotated[str, typer.Argument(metavar="APP", help="Name of the app, as flowkit status shows it")],
    agreement: Annotated[Path | None, typer.Argument(metavar="SLA.TOML", help="The agreement, unless --off")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of worker processes of each instance")] = 1,
    off: Annotated[bool, typer.Option("--off", help="Never reduce the service")] = False,
) -> None:
    """Let flows of low priority= rest while workers are missing.

    Flows rest while fewer workers of the app are ready than its normal service needs. Their routes answer 503, and
    their backlog is kept. When no more workers are ready than the minimum service needs, only flows of the highest
    priority run.
    """
    from flowkit.cli.direct import reduce

    if (agreement is None) is not off:
        raise typer.BadParameter("name either the agreement or --off")
    reduce(app, agreement, workers)


@commands.command(name="report", epilog=STORE)
def sla_report(
    app: Annotated[str, typer.Argument(metavar="APP", help="Name of the app, as flowkit status shows it")],
    agreement: Annotated[Path, typer.Argument(metavar="SLA.TOML", help="The agreement")],
    last: Annotated[str, typer.Option(help="Length of the time before now, such as 7d")] = "7d",
    as_json: Json = False,
) -> None:
    """Compare the availability of an app with its agreement.

    The command also shows the downtime and how much is permitted. Deployments count like failures. Exit code 1 if the
    downtime is longer than permitted.
    """
    from flowkit.cli.sla import report

    raise typer.Exit(report(app, agreement, last, as_json))


@commands.command(name="measure", epilog=EVERYTHING)
def sla_measure(
    app: AppName,
    send: Send,
    content: Content = "",
    response: Annotated[str, typer.Option(help="Longest response time, such as 250ms")] = "250ms",
    percentile: Annotated[
        float, typer.Option(min=1, max=100, help="Percent of the requests that must meet --response")
    ] = 99.0,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds for which each load is tried")] = 5.0,
    as_json: Json = False,
) -> None:
    """Measure how many requests a second one instance sustains.

    The instance runs on this machine. The requests are stored in the database of FLOWKIT_DATABASE_URL, and applied: use
    a database made for this. Exit code 1 if it does not sustain the lowest load.
    """
    from flowkit.cli.verify import measure

    raise typer.Exit(measure(app, send, content, response, percentile, seconds, as_json))


@commands.command(name="verify", epilog=EVERYTHING)
def sla_verify(
    app: AppName,
    agreement: Annotated[Path, typer.Argument(metavar="SLA.TOML", help="The agreement")],
    send: Send,
    content: Content = "",
    nodes: Annotated[int, typer.Option(min=2, max=100, help="Number of instances")] = 3,
    kill: Annotated[int, typer.Option(min=1, help="Number of instances that are killed at once")] = 1,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds before and after each failure")] = 10.0,
    chart: Annotated[Path | None, typer.Option(help="File for a chart of the test: .svg or .png")] = None,
    as_json: Json = False,
) -> None:
    """Test whether APP keeps an agreement while instances fail.

    Instances are killed, frozen and replaced under load, behind HAProxy. The requests are stored in the database of
    FLOWKIT_DATABASE_URL, and applied: use a database made for this. Exit code 1 if a clause is broken.
    """
    from flowkit.cli.verify import Plan, verify

    raise typer.Exit(verify(app, agreement, Plan(send, content, nodes, kill, seconds), chart, as_json))
