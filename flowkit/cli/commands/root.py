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
Names = Annotated[list[str], typer.Argument(metavar="FLOW|APP...", help="Full names of flows or apps")]


def _version(show: bool) -> None:
    if show:
        print(f"flowkit {__version__}")
        raise typer.Exit


@cli.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version of FlowKit", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Reliable messaging: flows that take effect once, whatever crashes."""


@cli.command(epilog=EVERYTHING)
def run(
    app: AppName,
    workers: Annotated[int, typer.Option(min=1, help="The number of worker processes")] = 1,
    flows: Annotated[str, typer.Option(help="Only these flows, separated by commas")] = "",
    until_idle: Annotated[bool, typer.Option("--until-idle", help="Stop when nothing is pending")] = False,
    grace: Annotated[str, typer.Option(help="How long workers may take to finish at the shutdown")] = "30s",
    http: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to serve the routes of APP")] = "",
    admin: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="With --http: the listener for operators, or none; default: 127.0.0.1, port + 1000",
        ),
    ] = "",
    agent: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to answer HAProxy's agent checks")] = "",
    drain: Annotated[str, typer.Option(help="With --http: how long to be unready before the shutdown")] = "2s",
    standby: Annotated[Standby, typer.Option(help="Stand by: hot (loaded) or warm (one small process)")] = "none",
    group: Annotated[str, typer.Option(help="The group: its instances are active, or on standby, together")] = "",
    site: Annotated[str, typer.Option(help="A name for the place of this instance, for flowkit status")] = "",
    app_version: Annotated[str, typer.Option("--version", help="The version of APP; it waits for its rollout")] = "",
) -> None:
    """Run the flows of APP: a supervisor and its workers."""
    from flowkit.cli.run import run
    from flowkit.host.options import Options

    chosen = [one.strip() for one in flows.split(",") if one.strip()]
    options = Options(workers, chosen, until_idle, grace, http, admin, agent, drain, standby, group, site, app_version)
    raise typer.Exit(run(app, options))


@cli.command(epilog=SERVICES)
def check(app: AppName) -> None:
    """Find mistakes in APP and its configuration.

    The command also warns of state that handlers keep in memory or in local files. End a line with "# flowkit:
    stateless" to say that it is intended.
    """
    from flowkit.cli.describe import check

    check(app)


@cli.command(epilog="Environment: FLOWKIT_LEASE. The database and the broker of the settings are not used.")
def prove(
    app: AppName,
    scenario: Annotated[str, typer.Argument(help="A function of APP's module, or tests.py:function")],
    directory: Annotated[
        Path | None, typer.Option(help="A directory whose files are compared; each run empties it", file_okay=False)
    ] = None,
    observe: Annotated[str | None, typer.Option(help="A function that returns further effects to compare")] = None,
    points: Annotated[int, typer.Option(min=1, help="The largest number of points to kill at")] = 1000,
    as_json: Json = False,
) -> None:
    """Kill a worker of APP at each point of a scenario; compare.

    scenario(harness) publishes the messages that the flows handle. Each run has a SQLite database of its own. Exit code
    1 if a crash changes the effects at the end; the command names the effect that escaped its transaction. Exit code 2
    if nothing can be proven: the scenario fails, or its runs end differently.
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
    channel: Annotated[str, typer.Argument(help="The name of the channel")],
    body: Annotated[
        str, typer.Argument(metavar="[JSON|-|@FILE.jsonl]", help="The body; -: a body on each line of stdin")
    ] = "-",
    key: Annotated[str | None, typer.Option(help="The key of the message")] = None,
    id: Annotated[str | None, typer.Option(help="The id of the message; the same id is accepted once")] = None,
    delay: Annotated[str, typer.Option(help="How long to delay the message")] = "0s",
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
    names: Names, wait: Annotated[str, typer.Option(help="How long to wait until no message is left")] = "10m"
) -> None:
    """Stop accepting HTTP for apps or flows, and empty them.

    The command waits until no message is left. Routes answer 503, and a drained app is not ready. Exit code 1 if
    messages are left when the time is over.
    """
    from flowkit.cli.direct import drain

    raise typer.Exit(drain(names, wait))


@cli.command(epilog=STORE)
def scale(
    name: Annotated[str, typer.Argument(metavar="FLOW|APP", help="Full name of a flow or an app")],
    many: Annotated[int, typer.Argument(min=1, max=256, help="The number of workers or lanes")],
) -> None:
    """Set the number of workers of an app, or lanes of a flow.

    For an app, it is the number of worker processes in each instance. For a flow, it is the number of its lanes in each
    worker. The fleet follows within seconds. New lanes come with new workers, which replace the old ones one by one.
    """
    from flowkit.cli.direct import scale

    scale(name, many)


@cli.command(epilog=STORE)
def resume(names: Names) -> None:
    """End the effect of pause, drain and scale."""
    from flowkit.cli.direct import resume

    resume(names)


@cli.command(epilog=SERVICES)
def audit(as_json: Json = False) -> None:
    """Check that no message was lost or counted twice.

    For each flow, accepted = applied + dead + discarded + expired + pending has to hold. Exit code 1 if it does not.
    """
    from flowkit.cli.status import audit

    raise typer.Exit(audit(as_json))
