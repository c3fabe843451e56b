"""Parts that commands share: the texts below their help, and the types of their arguments and options."""

from typing import Annotated

import typer

EXITS = (
    "Exit codes: 0 done; 1 the answer is no, or something was not done; 2 wrong usage, setting or definition; 3 the "
    "store cannot be reached, or a conflict remained; 130 interrupted."
)

STORE = "Environment: FLOWKIT_DATABASE_URL."
SERVICES = "Environment: FLOWKIT_DATABASE_URL, FLOWKIT_BROKER_URL, FLOWKIT_BROKER_MANAGEMENT_URL and FLOWKIT_DRAIN_URL."
EVERYTHING = (
    "Environment: FLOWKIT_DATABASE_URL, FLOWKIT_BROKER_URL, FLOWKIT_BROKER_MANAGEMENT_URL, FLOWKIT_DRAIN_URL, "
    "FLOWKIT_THREADS, FLOWKIT_LEASE, FLOWKIT_GROUP, FLOWKIT_GROUP_LEASE, FLOWKIT_SITE, FLOWKIT_VERSION, "
    "FLOWKIT_LOG_FORMAT and FLOWKIT_LOG_LEVEL; for telemetry OTEL_TRACES_EXPORTER and the other variables of "
    "OpenTelemetry."
)
NOTHING = "Environment: the command reads no variable."

AppName = Annotated[str, typer.Argument(metavar="APP", help="A file such as shop.py, or module:app")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation")]


def group(help: str) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(help=help, epilog=EXITS, no_args_is_help=True, rich_markup_mode=None)
