"""The commands and their options. Each imports what it needs when it runs, so that `--help` stays quick."""

import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer

from flowkit import __version__

EXITS = (
    "Exit codes: 0 done; 1 the answer is no: unbalanced, a stopped flow, nothing found; 2 wrong usage, configuration "
    "or definition; 3 the store cannot be reached; 130 interrupted."
)

STORE = "Environment: FLOWKIT_DATABASE_URL."
SERVICES = "Environment: FLOWKIT_DATABASE_URL, FLOWKIT_BROKER_URL, FLOWKIT_BROKER_MANAGEMENT_URL and FLOWKIT_DRAIN_URL."
EVERYTHING = (
    "Environment: FLOWKIT_DATABASE_URL, FLOWKIT_BROKER_URL, FLOWKIT_BROKER_MANAGEMENT_URL, FLOWKIT_DRAIN_URL, "
    "FLOWKIT_THREADS, FLOWKIT_LEASE, FLOWKIT_GROUP, FLOWKIT_GROUP_LEASE, FLOWKIT_SITE, FLOWKIT_VERSION, "
    "FLOWKIT_LOG_FORMAT and FLOWKIT_LOG_LEVEL; for telemetry OTEL_TRACES_EXPORTER and the others of OpenTelemetry."
)
NOTHING = "Environment: no variable is read."

cli = typer.Typer(
    name="flowkit",
    help="Reliable messaging: flows that take effect once, whatever crashes.",
    epilog=EXITS,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
dead_cli = typer.Typer(
    help="Dead letters: list, show, retry or discard them.", epilog=EXITS, no_args_is_help=True, rich_markup_mode=None
)
db_cli = typer.Typer(help="The schema of the store.", epilog=EXITS, no_args_is_help=True, rich_markup_mode=None)
subscriptions_cli = typer.Typer(
    help="The flows that are subscribed: list, remove or rename them.",
    epilog=EXITS,
    no_args_is_help=True,
    rich_markup_mode=None,
)
keys_cli = typer.Typer(
    help="Keys that sign messages: list, rotate, require them.",
    epilog=EXITS,
    no_args_is_help=True,
    rich_markup_mode=None,
)
sla_cli = typer.Typer(
    help="The service level agreement: plan, measure and verify it.",
    epilog=EXITS,
    no_args_is_help=True,
    rich_markup_mode=None,
)
rollout_cli = typer.Typer(
    help="Versions side by side: start, shift, promote, roll back.",
    epilog=EXITS,
    no_args_is_help=True,
    rich_markup_mode=None,
)
lb_cli = typer.Typer(help="Load balancers: configurations.", epilog=EXITS, no_args_is_help=True, rich_markup_mode=None)
cli.add_typer(dead_cli, name="dead")
cli.add_typer(db_cli, name="db")
cli.add_typer(subscriptions_cli, name="subscriptions")
cli.add_typer(keys_cli, name="keys")
cli.add_typer(rollout_cli, name="rollout")
cli.add_typer(sla_cli, name="sla")
cli.add_typer(lb_cli, name="lb")

AppName = Annotated[str, typer.Argument(metavar="APP", help="A file such as shop.py, or module:app")]
Json = Annotated[bool, typer.Option("--json", help="Pure JSON on standard output")]
Flow = Annotated[str | None, typer.Option(help="Only of this flow, by its full name: app.flow")]
Error = Annotated[str | None, typer.Option(help="Only with this text in the error")]
Letters = Annotated[list[str] | None, typer.Argument(help="Ids of letters")]
All = Annotated[bool, typer.Option("--all", help="All of them")]
Instances = Annotated[list[str], typer.Argument(metavar="HOST:PORT...", help="Where instances serve HTTP")]
Listen = Annotated[str, typer.Option(help="Where the balancer listens")]
Send = Annotated[str, typer.Option(help="The request: POST /orders. {n} is its number")]
Content = Annotated[str, typer.Option(help="Its content, as JSON. {n} is its number")]
Standby = Literal["none", "hot", "warm"]
FullName = Annotated[str, typer.Argument(metavar="APP.FLOW", help="The full name of a flow")]
Names = Annotated[list[str], typer.Argument(metavar="FLOW|APP...", help="By their full names")]
OfApp = Annotated[str, typer.Option("--app", help="Which app, if several have versions")]
Weight = Annotated[int, typer.Option(min=1, max=100, help="Percent of the messages")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")]


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
    """Show workers, what waits for each flow, and its ledger."""
    from flowkit.cli.status import status

    status(as_json)


@cli.command(epilog=STORE)
def pause(names: Names) -> None:
    """Let flows, or all of an app, begin nothing.

    This holds for the whole fleet. Messages in hand are finished, within a second. New ones are accepted, and wait.
    """
    from flowkit.cli.direct import pause

    pause(names)


@cli.command(epilog=STORE)
def drain(
    names: Names, wait: Annotated[str, typer.Option(help="How long to wait until nothing is left")] = "10m"
) -> None:
    """Let apps or flows get nothing over HTTP, and empty them.

    It waits until they have nothing left. Routes answer 503, and an app that is drained is not ready. Exit code 1 when
    something is left in the end.
    """
    from flowkit.cli.direct import drain

    raise typer.Exit(drain(names, wait))


@cli.command(epilog=STORE)
def scale(
    name: Annotated[str, typer.Argument(metavar="FLOW|APP", help="By its full name")],
    many: Annotated[int, typer.Argument(min=1, max=256, help="How many")],
) -> None:
    """Set the number of workers of an app, or lanes of a flow.

    So many worker processes in each instance of the app; so many lanes of the flow in each worker. The fleet follows
    within seconds. New lanes come with new workers, which replace the old ones one by one.
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


@dead_cli.command(name="list", epilog=STORE)
def dead_list(
    flow: Flow = None,
    error: Error = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many")] = 50,
    group: Annotated[bool, typer.Option("--group", help="Count them by flow and error")] = False,
    as_json: Json = False,
) -> None:
    """List dead letters, the oldest first."""
    from flowkit.cli.dead import show_list

    show_list(flow, error, limit, group, as_json)


@dead_cli.command(name="show", epilog=STORE)
def dead_show(
    letter: Annotated[str, typer.Argument(help="The letter's id")],
    body: Annotated[bool, typer.Option("--body", help="Show also what holds data: payload, stack and headers")] = False,
    as_json: Json = False,
) -> None:
    """Show one dead letter with its error.

    Everything that holds data is hidden unless asked for: payload, stack and values of headers.
    """
    from flowkit.cli.dead import show

    show(letter, body, as_json)


@dead_cli.command(name="retry", epilog=STORE)
def dead_retry(
    letters: Letters = None, flow: Flow = None, error: Error = None, all: All = False, yes: Yes = False
) -> None:
    """Send again: these, or those of a flow or an error."""
    from flowkit.cli.dead import settle

    settle("retry", letters or [], flow, error, all, yes)


@dead_cli.command(name="discard", epilog=STORE)
def dead_discard(
    letters: Letters = None, flow: Flow = None, error: Error = None, all: All = False, yes: Yes = False
) -> None:
    """Give up for good: these, or those of a flow or an error."""
    from flowkit.cli.dead import settle

    settle("discard", letters or [], flow, error, all, yes)


@subscriptions_cli.command(name="list", epilog=STORE)
def subscriptions_list(as_json: Json = False) -> None:
    """List the flows that get messages, and those that no app has."""
    from flowkit.cli.subscriptions import show_list

    show_list(as_json)


@subscriptions_cli.command(name="remove", epilog=STORE)
def subscriptions_remove(flow: FullName, yes: Yes = False) -> None:
    """Remove a flow that no app has any more.

    Waiting messages and dead letters are discarded, and counted so in its ledger. Exit code 2 without --yes when
    there are some and nobody can be asked.
    """
    from flowkit.cli.subscriptions import remove

    remove(flow, yes)


@subscriptions_cli.command(name="move", epilog=STORE)
def subscriptions_move(flow: FullName, name: FullName) -> None:
    """Rename a flow, with all its messages.

    Its waiting messages, also those at the broker, its inbox, its dead letters and its ledger go along. All instances
    have to be stopped.
    """
    from flowkit.cli.subscriptions import move

    move(flow, name)


@keys_cli.command(name="list", epilog=STORE)
def keys_list(as_json: Json = False) -> None:
    """List the keys, without their secrets."""
    from flowkit.cli.keys import show_list

    show_list(as_json)


@keys_cli.command(name="rotate", epilog=STORE)
def keys_rotate(
    hold: Annotated[
        str, typer.Option(help="How long the keys before verify, if not for the longest App(retention=), or 14d")
    ] = "",
) -> None:
    """Make a new key, by which all workers sign a minute later.

    Messages that were signed before are taken for --hold. With --hold 0s they are dead letters after two minutes: for
    a key that somebody else knows. Exit code 2 for another time that is shorter than the retention of an app.
    """
    from flowkit.cli.keys import rotate

    rotate(hold)


@keys_cli.command(name="require", epilog=STORE)
def keys_require() -> None:
    """Take no unsigned messages any more.

    After an upgrade, messages that versions before signed not are taken for 14 days, or for the longest
    App(retention=) if that is more. Write this once they are at their end. Exit code 2 while a worker of a version
    before runs; such versions do not start afterwards.
    """
    from flowkit.cli.keys import require

    require()


@db_cli.command(name="upgrade", epilog=STORE)
def db_upgrade() -> None:
    """Bring the schema of the store to this version."""
    from flowkit.cli.schema import upgrade

    upgrade()


@db_cli.command(name="check", epilog=STORE)
def db_check() -> None:
    """Say whether the schema is of this version.

    Exit code 1 when it is not.
    """
    from flowkit.cli.schema import check

    raise typer.Exit(check())


@db_cli.command(name="adopt", epilog=STORE)
def db_adopt(
    apart: Annotated[
        bool, typer.Option("--apart", help="Both go on: this copy gets an id, and queues, of its own")
    ] = False,
) -> None:
    """Let a copy of a store's database take its place.

    After a dump was restored elsewhere, or pg_upgrade: with a broker, workers refuse a database that the store was not
    in before. With --apart the copy is a store of its own; its workers have to be stopped.
    """
    from flowkit.cli.schema import adopt

    adopt(apart)


@sla_cli.command(name="budget", epilog=NOTHING)
def sla_budget(
    availability: Annotated[list[float], typer.Argument(metavar="PERCENT...", help="Such as 99 99.9")],
    as_json: Json = False,
) -> None:
    """Show the downtime that an availability permits."""
    from flowkit.cli.sla import budget

    budget(availability, as_json)


@sla_cli.command(name="init", epilog=NOTHING)
def sla_init(
    agreement: Annotated[Path, typer.Argument(metavar="[SLA.TOML]", help="The file to write")] = Path("sla.toml"),
) -> None:
    """Write an agreement with examples and comments, to be changed.

    A file that is there is kept.
    """
    from flowkit.cli.sla import init

    init(agreement)


@sla_cli.command(name="plan", epilog=NOTHING)
def sla_plan(
    agreement: Annotated[Path, typer.Argument(metavar="SLA.TOML", help="The agreement")], as_json: Json = False
) -> None:
    """Show how many nodes an agreement needs, and why.

    Also how likely each level is missed with so many, and what is a single point of failure.
    """
    from flowkit.cli.sla import plan

    raise typer.Exit(plan(agreement, as_json))


@sla_cli.command(name="apply", epilog=STORE)
def sla_apply(
    app: Annotated[str, typer.Argument(metavar="APP", help="Its name, as flowkit status shows it")],
    agreement: Annotated[Path | None, typer.Argument(metavar="SLA.TOML", help="The agreement, unless --off")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes of a node")] = 1,
    off: Annotated[bool, typer.Option("--off", help="Let the service never be reduced")] = False,
) -> None:
    """Let flows of low priority= rest while workers are missing.

    That is, while fewer workers of an app are ready than its normal service takes. Their routes answer 503, and
    their backlog is kept. With no more than the minimum service takes, only those of the highest priority are left.
    """
    from flowkit.cli.direct import reduce

    if (agreement is None) is not off:
        raise typer.BadParameter("name either the agreement or --off")
    reduce(app, agreement, workers)


@sla_cli.command(name="report", epilog=STORE)
def sla_report(
    app: Annotated[str, typer.Argument(metavar="APP", help="Its name, as flowkit status shows it")],
    agreement: Annotated[Path, typer.Argument(metavar="SLA.TOML", help="The agreement")],
    last: Annotated[str, typer.Option(help="How far back")] = "7d",
    as_json: Json = False,
) -> None:
    """Show how available an app has been, against the agreement.

    Also how much of the permitted downtime is left. Deployments count like failures. Exit code 1 when more than
    permitted is spent.
    """
    from flowkit.cli.sla import report

    raise typer.Exit(report(app, agreement, last, as_json))


@sla_cli.command(name="measure", epilog=EVERYTHING)
def sla_measure(
    app: AppName,
    send: Send,
    content: Content = "",
    response: Annotated[str, typer.Option(help="The longest response time")] = "250ms",
    percentile: Annotated[float, typer.Option(min=1, max=100, help="Of so many percent of the requests")] = 99.0,
    seconds: Annotated[float, typer.Option(min=1, help="How long each rate is tried")] = 5.0,
    as_json: Json = False,
) -> None:
    """Find how many requests a second one instance of APP bears.

    On this machine. They are stored in the database of FLOWKIT_DATABASE_URL, and applied: use one of its own.
    """
    from flowkit.cli.verify import measure

    raise typer.Exit(measure(app, send, content, response, percentile, seconds, as_json))


@sla_cli.command(name="verify", epilog=EVERYTHING)
def sla_verify(
    app: AppName,
    agreement: Annotated[Path, typer.Argument(metavar="SLA.TOML", help="The agreement")],
    send: Send,
    content: Content = "",
    nodes: Annotated[int, typer.Option(min=2, max=100, help="Instances")] = 3,
    kill: Annotated[int, typer.Option(min=1, help="How many of them are killed at once")] = 1,
    seconds: Annotated[float, typer.Option(min=1, help="How long to wait before and after each event")] = 10.0,
    chart: Annotated[Path | None, typer.Option(help="Draw what happened: an SVG or PNG file")] = None,
    as_json: Json = False,
) -> None:
    """See whether APP keeps an agreement while instances fail.

    They are killed, frozen and replaced under load, behind HAProxy. What is sent is stored in the database of
    FLOWKIT_DATABASE_URL, and applied: use one of its own. Exit code 1 when a clause is broken.
    """
    from flowkit.cli.verify import Plan, verify

    raise typer.Exit(verify(app, agreement, Plan(send, content, nodes, kill, seconds), chart, as_json))


@rollout_cli.command(name="start", epilog=SERVICES)
def rollout_start(
    given: typer.Context,
    version: Annotated[str, typer.Argument(help="What flowkit run --version said")],
    weight: Weight = 5,
    app: OfApp = "",
    auto: Annotated[bool, typer.Option("--auto", help="Stay, go on by steps, and roll back what is worse")] = False,
    steps: Annotated[str, typer.Option(help="With --auto: the next percents")] = "25,50,100",
    every: Annotated[str, typer.Option(help="With --auto: how long each of them is watched")] = "1m",
    errors: Annotated[
        float, typer.Option(min=0, max=100, help="With --auto: percent that may fail beyond the baseline's")
    ] = 1.0,
    p99: Annotated[str, typer.Option(help="With --auto: how long 99 % may be in hand, if not at the baseline")] = "1s",
) -> None:
    """Let a version have some of the messages.

    By the hash of their keys, so that those of one key stay together. With --auto it is promoted in the end, or
    rolled back. Exit code 1 when it was rolled back.
    """
    from flowkit.cli.rollout import ramp, start

    for one in () if auto else ("steps", "every", "errors", "p99"):
        if getattr(given.get_parameter_source(one), "name", "") == "COMMANDLINE":
            raise typer.BadParameter(f"--{one} says how a rollout goes on by itself; add --auto")
    raise typer.Exit(start(version, weight, app, ramp(steps, every, errors, p99) if auto else None))


@rollout_cli.command(name="shift", epilog=SERVICES)
def rollout_shift(
    weight: Annotated[int, typer.Argument(min=1, max=100, metavar="PERCENT", help="Of the messages")], app: OfApp = ""
) -> None:
    """Let the candidate have another share."""
    from flowkit.cli.rollout import shift

    shift(weight, app)


@rollout_cli.command(name="promote", epilog=SERVICES)
def rollout_promote(
    version: Annotated[
        str | None, typer.Argument(help="The candidate, if nothing else is said; '(none)' for the one without a name")
    ] = None,
    app: OfApp = "",
) -> None:
    """Let a version have all messages.

    The one before it is drained, and can be stopped.
    """
    from flowkit.cli.rollout import promote

    promote(version, app)


@rollout_cli.command(name="rollback", epilog=SERVICES)
def rollout_rollback(app: OfApp = "") -> None:
    """Let the baseline have all messages again.

    Also those that died at the candidate.
    """
    from flowkit.cli.rollout import rollback

    rollback(app)


@rollout_cli.command(name="status", epilog=SERVICES)
def rollout_status(app: OfApp = "", as_json: Json = False) -> None:
    """Show the versions of an app, what each gets and how it does."""
    from flowkit.cli.rollout import status

    status(app, as_json)


@lb_cli.command(name="haproxy", epilog=NOTHING)
def lb_haproxy(
    instances: Instances,
    listen: Listen = ":8000",
    agent_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Where instances answer checks")] = None,
) -> None:
    """Print a configuration of HAProxy for these instances."""
    from flowkit.cli.balancer import haproxy

    haproxy(instances, listen, agent_port)


@lb_cli.command(name="nginx", epilog=NOTHING)
def lb_nginx(instances: Instances, listen: Listen = "8000") -> None:
    """Print a configuration of nginx for these instances."""
    from flowkit.cli.balancer import nginx

    nginx(instances, listen)


def main() -> None:
    """The entry point: every mistake ends as one sentence and an exit code."""
    try:
        foreign = metadata.distribution("flowkit")
    except metadata.PackageNotFoundError:
        foreign = None
    if foreign is not None:
        print(
            f"flowkit: another project, flowkit {foreign.version}, is installed and imports under the same name; "
            "pip uninstall flowkit, then pip install --force-reinstall flowkit-runtime",
            file=sys.stderr,
        )
        raise SystemExit(2)
    try:
        cli(prog_name="flowkit")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        from flowkit.errors import (
            ConfigError,
            DefinitionError,
            FlowKitError,
            StoreConflict,
            StoreLost,
            StoreUnavailable,
        )
        from flowkit.plain import ENDS, plain

        if not isinstance(error, FlowKitError):
            raise
        print(f"flowkit: {plain(str(error), ENDS)}", file=sys.stderr)
        wrong = isinstance(error, ConfigError | DefinitionError | StoreLost)
        raise SystemExit(2 if wrong else 3 if isinstance(error, StoreUnavailable | StoreConflict) else 1) from None
