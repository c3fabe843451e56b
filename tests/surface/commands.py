"""What people and scripts call: commands, options, help, exit codes, and the JSON that commands print."""

import contextlib
import importlib
import inspect
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from .package import Lines, Package, errors, leaves

STATUSES = ("CAME_BACK", "INTERRUPTED", "LOST", "REPLACE", "STOPPED")
"""The constants that are exit statuses of processes."""
JSON = (
    "audit",
    "dead list",
    "dead list --group",
    "dead show",
    "describe",
    "keys list",
    "sla budget",
    "status",
    "subscriptions list",
)
"""The commands whose JSON is read here."""


def command_line(package: Package) -> Any:
    import typer

    return package.that(lambda one: isinstance(one, typer.Typer) and one.info.name == "flowkit")


def call(*arguments: str) -> tuple[int, str]:
    """Call the entry point of `flowkit` as a shell does. Returns the exit code, and what it printed."""
    main, out = importlib.import_module("flowkit.cli").main, io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(sys, "argv", ["flowkit", *arguments]))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), out.getvalue()
    return 0, out.getvalue()


def of_commands(package: Package) -> Lines:
    import typer

    def of(command: Any, name: str, parent: Any) -> Lines:
        context = command.make_context(name, [], parent=parent, resilient_parsing=True)
        path = context.command_path
        yield f"command {path}: {' '.join(command.collect_usage_pieces(context))}"
        for kind in ("help", "epilog"):
            paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(getattr(command, kind) or ""))
            for number, paragraph in enumerate(paragraphs, 1):
                yield f"command-text {path} {kind} {number}: {' '.join(paragraph.split())}"
        for parameter in command.get_params(context):
            shown, said = parameter.get_help_record(context) or (parameter.name, "")
            default = parameter.get_default(context)
            shown_default = repr(str(default) if isinstance(default, Path) else default)
            yield f"command {path} {shown}: {'required' if parameter.required else f'default {shown_default}'}"
            yield f"command-text {path} {shown}: {said}"
        for each, one in getattr(command, "commands", {}).items():
            if not one.hidden:
                yield from of(one, each, context)

    yield from of(typer.main.get_command(command_line(package)), "flowkit", None)


def of_exits(package: Package) -> Lines:
    """The statuses that have a name, and the status that each error ends the command line with."""
    for name in STATUSES:
        for value in package.constants(name):
            yield f"exit {name}: {value}"
    typer = command_line(package)
    raised: list[BaseException] = [KeyboardInterrupt()]

    @typer.command(name="fail", hidden=True)  # type: ignore[untyped-decorator]
    def fail() -> None:
        raise raised[-1]

    yield f"exit KeyboardInterrupt: {call('fail')[0]}"
    yield f"exit wrong usage: {call('no-such-command')[0]}"
    for kind in errors():
        error = kind.__new__(kind)
        error.args = ("said",)
        raised.append(error)
        with patch.object(kind, "__str__", lambda _: "said"):
            yield f"exit {kind.__name__}: {call('fail')[0]}"
    typer.registered_commands.pop()


def of_json(database: str) -> Lines:
    """The names and the types in the JSON of each command, on a database with one flow and one dead letter."""
    from flowkit.testing import Harness

    from .app import app, channel

    with contextlib.closing(Harness(app, database)) as harness:
        harness.publish(channel, 1)
        harness.until_quiet()
        (letter,) = [one.letter for one in harness.dead()]
    named = {"dead show": [letter], "describe": [str(Path(__file__).with_name("app.py"))], "sla budget": ["99.9"]}
    for command in JSON:
        with patch.dict(os.environ, {"FLOWKIT_DATABASE_URL": database}):
            _, said = call(*command.split(), *named.get(command.removesuffix(" --group"), []), "--json")
        for path, value in leaves(json.loads(said)):
            yield f"json {command}: {path} {type(value).__name__}"
