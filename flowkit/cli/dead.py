"""`flowkit dead`: what became of messages that failed for good."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import typer
from rich.progress import Progress

from flowkit.cli.name import similar
from flowkit.cli.plain import ENDS, plain
from flowkit.cli.show import as_json, as_json_list, table, tables
from flowkit.cli.subscriptions import confirm
from flowkit.config import Settings, open_store
from flowkit.errors import FlowKitError
from flowkit.ports import REFUSED

BATCH = 500
HIDDEN = "(hidden; see --body)"


@contextmanager
def _letters(flow: str | None = None) -> Iterator[Any]:
    """The dead letters. Refuses a flow that nothing has, because the letters of another one may be meant."""
    store: Any = open_store(Settings.read(), create=False)
    try:
        subscribed = store.subscribers.channels() if flow else ()
        if flow and flow not in subscribed and flow not in (balances := store.ledger.balances()):
            meant = similar(flow, {*subscribed, *balances})
            raise FlowKitError(f"there are no such dead letters: no flow {plain(flow)} is in this store{meant}")
        yield store.dead_letters
    finally:
        store.close()


def show_list(flow: str | None, error: str | None, limit: int, group: bool, json: bool) -> None:
    """List, or count by flow and error."""
    if group:
        show_groups(flow, error, limit, json)
        return
    with _letters(flow) as letters:
        found = letters.select(flow, error, limit + 1)  # one more tells that there are more
        pages = (letters.read(batch, whole=False) for batch in batches(found[:limit]))
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


def batches(letters: list[str]) -> Iterator[list[str]]:
    """The letters, as many at a time as memory and one transaction should hold."""
    for start in range(0, len(letters), BATCH):
        yield letters[start : start + BATCH]


def show(letter: str, body: bool, json: bool) -> None:
    """One letter. Data of its message are shown only with `body`: payload, stack, and values of headers."""
    with _letters() as letters:
        found = letters.read([letter])
    if not found:
        raise FlowKitError(f"there is no dead letter {letter}; see flowkit dead list")
    fields = _fields(found[0], body) | {"stack": found[0].stack if body else HIDDEN}
    fields["body"] = found[0].message.body.decode(errors="backslashreplace") if body else HIDDEN
    if json:
        as_json(fields)
        return
    for name, value in fields.items():
        kept = ENDS if name in ("stack", "body") else ""  # set in, so that no line looks like another field
        print(f"{name}: {plain('' if value is None else str(value), kept)}".replace("\n", "\n  "))


def settle(
    verb: Literal["retry", "discard"], chosen: list[str], flow: str | None, error: str | None, all: bool, yes: bool
) -> None:
    """Retry or discard letters, in batches."""
    if bool(chosen) + bool(flow or error) + all != 1:
        raise typer.BadParameter(f"name what to {verb}: either ids of letters, or --flow and --error, or --all")
    chosen = list(dict.fromkeys(chosen))
    with _letters(flow) as letters:
        wanted = chosen or letters.select(flow, error)
        if not wanted:
            raise FlowKitError("there are no such dead letters")
        if len(wanted) > 1 and not yes and sys.stdin.isatty():
            answer = input(f"{verb} {len(wanted)} dead letters? [y/N] ")
            if answer.strip().lower() not in ("y", "yes"):
                raise FlowKitError("nothing was done")
        if verb == "retry":
            _warn_of_refused(letters, wanted, yes)
        done = 0
        with Progress(disable=not sys.stderr.isatty(), transient=True) as progress:
            task = progress.add_task(verb, total=len(wanted))
            for batch in batches(wanted):
                done += getattr(letters, verb)(batch)
                progress.advance(task, len(batch))
    print(f"{done} of {len(wanted)} dead letters: {'sent again' if verb == 'retry' else 'discarded'}")
    if done < len(chosen):
        raise FlowKitError(f"{len(chosen) - done} of the letters named are not there; see flowkit dead list")


def _warn_of_refused(letters: Any, wanted: list[str], yes: bool) -> None:
    """Tell what becomes of letters that were refused, and ask whether that is meant. Raises what `confirm` raises."""
    pages = (letters.read(batch, whole=False) for batch in batches(wanted))
    count = sum(one.reason == REFUSED for page in pages for one in page)
    if not count:
        return
    told = (
        f"{count} of them {'was' if count == 1 else 'were'} refused: nothing shows that this store sent them; they are "
        "sent again as messages of another program, so what this store sent, and has applied, is applied again"
    )
    if yes:
        print(told, file=sys.stderr)
    else:
        confirm(told)


def _cells(one: Any) -> tuple[object, ...]:
    return one.letter, one.flow, one.message.id, one.attempts, _time(one.died), one.reason, one.error


def _fields(one: Any, whole: bool) -> dict[str, Any]:
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
