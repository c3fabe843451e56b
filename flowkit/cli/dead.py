"""`flowkit dead`: list, show, retry and discard dead letters."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import typer
from rich.progress import Progress

from flowkit.cli.opened import opened_store
from flowkit.cli.question import ask, confirm
from flowkit.cli.show import as_json, as_json_list, table, tables
from flowkit.errors import FlowKitError
from flowkit.operations import dead_letters
from flowkit.plain import ENDS, plain
from flowkit.store.dead_letters import DeadLetter, DeadLetters

HIDDEN = "(hidden; see --body)"


@contextmanager
def _letters(flow: str | None = None) -> Iterator[DeadLetters]:
    """Open the dead letters. Raises FlowKitError for an unknown flow."""
    with opened_store() as store:
        if flow:
            dead_letters.check_flow(store, flow)
        yield store.dead_letters


def show_list(flow: str | None, error: str | None, limit: int, group: bool, json: bool) -> None:
    """List, or count by flow and error."""
    if group:
        show_groups(flow, error, limit, json)
        return
    with _letters(flow) as letters:
        found = letters.select(flow, error, limit + 1)  # one more shows that there are more
        pages = dead_letters.pages(letters, found[:limit])
        if json:
            as_json_list(_fields(one, False) for page in pages for one in page)
        else:
            columns = ["letter", "flow", "message", "attempts", "died", "reason", "error"]
            tables("Dead letters", columns, ([_cells(one) for one in page] for page in pages))
    if len(found) > limit:
        print(
            f"the oldest {limit:,} are shown, and there are more: --limit shows them, --group counts", file=sys.stderr
        )


def show_groups(flow: str | None, error: str | None, limit: int, json: bool) -> None:
    """Count by flow and error, the most frequent first."""
    with _letters(flow) as letters:
        rows = letters.groups(flow, error, limit)
    columns = ["flow", "reason", "error", "count"]
    if json:
        as_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        table("Dead letters", columns, rows)


def show(letter: str, body: bool, json: bool) -> None:
    """Show one letter. The message's body and header values, and the stack, are shown only with `body`."""
    with _letters() as letters:
        found = dead_letters.read(letters, letter)
    fields = _fields(found, body) | {"stack": found.stack if body else HIDDEN}
    fields["body"] = found.message.body.decode(errors="backslashreplace") if body else HIDDEN
    if json:
        as_json(fields)
        return
    for name, value in fields.items():
        kept = ENDS if name in ("stack", "body") else ""  # indented, so that no line looks like another field
        print(f"{name}: {plain('' if value is None else str(value), kept)}".replace("\n", "\n  "))


def settle(
    verb: dead_letters.Verb, chosen: list[str], flow: str | None, error: str | None, all: bool, yes: bool
) -> None:
    """Retry or discard letters, and print how many. Raises typer.BadParameter, ConfigError and FlowKitError."""
    if bool(chosen) + bool(flow or error) + all != 1:
        raise typer.BadParameter(f"name what to {verb}: either ids of letters, or --flow and --error, or --all")
    with _letters(flow) as letters:
        wanted = dead_letters.choose(letters, chosen, flow, error)
        if len(wanted) > 1 and not yes and sys.stdin.isatty():
            ask(f"{verb} {len(wanted)} dead letters?")
        if verb == "retry":
            _warn_of_refused(dead_letters.refused(letters, wanted), yes)
        done = 0
        with Progress(disable=not sys.stderr.isatty(), transient=True) as progress:
            task = progress.add_task(verb, total=len(wanted))
            for batch in dead_letters.settle(letters, verb, wanted):
                done += batch.done
                progress.advance(task, batch.letters)
    print(f"{done} of {len(wanted)} dead letters: {'sent again' if verb == 'retry' else 'discarded'}")
    if chosen and done < len(wanted):
        raise FlowKitError(f"{len(wanted) - done} of the letters named are not there; see flowkit dead list")


def _warn_of_refused(count: int, yes: bool) -> None:
    """Warn that refused letters are sent as another program's, and ask to confirm unless `yes`. Raises the errors of
    `confirm`."""
    if not count:
        return
    told = (
        f"{count} of them {'was' if count == 1 else 'were'} refused: nothing proves that this store sent them; they "
        "are sent again as messages of another program, so a message that this store has applied is applied again"
    )
    if yes:
        print(told, file=sys.stderr)
    else:
        confirm(told)


def _cells(one: DeadLetter) -> tuple[object, ...]:
    return one.letter, one.flow, one.message.id, one.attempts, _time(one.died), one.reason, one.error


def _fields(one: DeadLetter, whole: bool) -> dict[str, Any]:
    message = one.message
    return {
        "letter": one.letter,
        "flow": one.flow,
        "message": message.id,
        "source": message.source,
        "channel": message.channel,
        "key": message.key,
        "correlation": message.correlation,
        "headers": {name: value if whole else HIDDEN for name, value in message.headers.items()},
        "attempts": one.attempts,
        "died": _time(one.died),
        "reason": one.reason,
        "error": one.error,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
