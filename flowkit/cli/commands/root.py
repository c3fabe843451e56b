"""The command `flowkit`, and its commands that are in no group."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flowkit import __version__
from flowkit.cli.commands.options import EVERYTHING, EXITS, SERVICES, STORE, AppName, Json

cli = typer.Typer(
    name="flowkit",
    help="Reliable messaging: flows that take effect once, whatever crashes.",
    epilog=EXITS,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Standby = Literal["none", "hot", "warm"]
Names = Annotated[list[str], typer.Argument(metavar="FLOW|APP...", help="By their full names")]


def _version(show: bool) -> None:
    if show:
        print(f"flowkit {__version__}")
        raise typer.Exit


@cli.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Reliable messaging: flows that take effect once, whatever crashes."""


@cli.command(epilog=EVERYTHING)
def run(
    app: AppName,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes")] = 1,
    flows: Annotated[str, typer.Option(help="Only these flows, separated by commas")] = "",
    until_idle: Annotated[bool, typer.Option("--until-idle", help="Stop when nothing is pending")] = False,
    grace: Annotated[str, typer.Option(help="How long workers may take to finish at the end")] = "30s",
    http: Annotated[str, typer.Option(metavar="HOST:PORT", help="Serve the routes of APP there")] = "",
    admin: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="With --http: serve operators there, or at none; by default 127.0.0.1, port + 1000",
        ),
    ] = "",
    agent: Annotated[str, typer.Option(metavar="HOST:PORT", help="Answer HAProxy's agent checks there")] = "",
    drain: Annotated[str, typer.Option(help="With --http: how long to be unready before the end")] = "2s",
    standby: Annotated[Standby, typer.Option(help="Be a spare, loaded or not, that takes over")] = "none",
    group: Annotated[str, typer.Option(help="Instances that are active, or spare, together")] = "",
    site: Annotated[str, typer.Option(help="Where this instance is, for flowkit status")] = "",
    app_version: Annotated[str, typer.Option("--version", help="Of APP; it waits for its rollout")] = "",
) -> None:
    """Run the flows of APP: a supervisor and its workers."""
    from flowkit.cli.run import run
    from flowkit.host.options import Options

    chosen = [one.strip() for one in flows.split(",") if one.strip()]
    options = Options(workers, chosen, until_idle, grace, http, admin, agent, drain, standby, group, site, app_version)
    raise typer.Exit(run(app, options))


@cli.command(epilog=SERVICES)
def check(app: AppName) -> None:
    """Find what is wrong in APP and its configuration.

    Warns of what handlers keep in memory or in local files; a line that ends with "# flowkit: stateless" is meant.
    """
    from flowkit.cli.describe import check

    check(app)


@cli.command(epilog="Environment: FLOWKIT_LEASE. The database and the broker are none of the settings'.")
def prove(
    app: AppName,
    scenario: Annotated[str, typer.Argument(help="A function of APP's module, or tests.py:function")],
    directory: Annotated[
        Path | None, typer.Option(help="Compare the files in it; it is emptied for each run", file_okay=False)
    ] = None,
    observe: Annotated[str | None, typer.Option(help="A function that returns other effects")] = None,
    points: Annotated[int, typer.Option(min=1, help="Kill at so many points at most")] = 1000,
    as_json: Json = False,
) -> None:
    """Kill a worker of APP at each point of a scenario; compare.

    scenario(harness) publishes what the flows work on. Each run has a SQLite database of its own. Exit code 1 when a
    crash changes what is there at the end; the effect that escaped its transaction is named. Exit code 2 when nothing
    can be said: the scenario fails, or ends differently each time.
    """
    from flowkit.cli.prove import prove

    raise typer.Exit(prove(app, scenario, directory, observe, points, as_json))


@cli.command(epilog=SERVICES)
def describe(app: AppName, as_json: Json = False) -> None:
    """Show the flows and channels of APP."""
    from flowkit.cli.describe import describe

    describe(app, as_json)


@cli.command(epilog=SERVICES)
def send(
    app: AppName,
    channel: Annotated[str, typer.Argument(help="The channel's name")],
    body: Annotated[str, typer.Argument(metavar="[JSON|-|@FILE.jsonl]", help="- reads lines of stdin")] = "-",
    key: Annotated[str | None, typer.Option(help="The key of the message")] = None,
    id: Annotated[str | None, typer.Option(help="Its id: the same id is accepted once")] = None,
    delay: Annotated[str, typer.Option(help="Deliver it after so long")] = "0s",
) -> None:
    """Publish one message, or one for each line of a file."""
    from flowkit.cli.send import send

    send(app, channel, body, key, id, delay)


@cli.command(epilog=SERVICES)
def status(as_json: Json = False) -> None:
    """Show workers, pending messages of flows, and their ledgers."""
    from flowkit.cli.status import status

    status(as_json)


@cli.command(epilog=STORE)
def pause(names: Names) -> None:
    """Pause flows, or all flows of an app, in the whole fleet.

    Within a second no worker begins another message of them. Messages in flight are finished. New ones are accepted,
    and wait.
    """
    from flowkit.cli.direct import pause

    pause(names)


@cli.command(epilog=STORE)
def drain(
    names: Names, wait: Annotated[str, typer.Option(help="How long to wait until nothing is left")] = "10m"
) -> None:
    """Stop accepting HTTP for apps or flows, and empty them.

    The command waits until none is left. Routes answer 503, and an app that is drained is not ready. Exit code 1 if
    messages are left in the end.
    """
    from flowkit.cli.direct import drain

    raise typer.Exit(drain(names, wait))


@cli.command(epilog=STORE)
def scale(
    name: Annotated[str, typer.Argument(metavar="FLOW|APP", help="By its full name")],
    many: Annotated[int, typer.Argument(min=1, max=256, help="How many")],
) -> None:
    """Set the number of workers of an app, or lanes of a flow.

    For an app, it is the number of worker processes in each instance. For a flow, it is the number of its lanes in each
    worker. The fleet follows within seconds. New lanes come with new workers, which replace the old ones one by one.
    """
    from flowkit.cli.direct import scale

    scale(name, many)


@cli.command(epilog=STORE)
def resume(names: Names) -> None:
    """End pause, drain and scale: flows or apps are as defined."""
    from flowkit.cli.direct import resume

    resume(names)


@cli.command(epilog=SERVICES)
def audit(as_json: Json = False) -> None:
    """Check that no message was lost or counted twice.

    For each flow: accepted = applied + dead + discarded + expired + pending. Exit code 1 when it is not so.
    """
    from flowkit.cli.status import audit

    raise typer.Exit(audit(as_json))
