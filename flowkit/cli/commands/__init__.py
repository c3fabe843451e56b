"""The commands and their options. Each imports what it needs when it runs, so that `--help` stays quick."""

import sys
from importlib import metadata

from flowkit.cli.commands import db, dead, keys, lb, rollout, sla, subscriptions
from flowkit.cli.commands.root import cli

__all__ = ["cli", "main"]

cli.add_typer(dead.commands, name="dead")
cli.add_typer(db.commands, name="db")
cli.add_typer(subscriptions.commands, name="subscriptions")
cli.add_typer(keys.commands, name="keys")
cli.add_typer(rollout.commands, name="rollout")
cli.add_typer(sla.commands, name="sla")
cli.add_typer(lb.commands, name="lb")


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
