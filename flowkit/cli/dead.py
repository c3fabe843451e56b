"""`flowkit dead`: what became of messages that failed for good."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

from rich.progress import Progress

from flowkit.cli.show import as_json, plain, table
from flowkit.config import Settings, open_store
from flowkit.errors import FlowKitError

BATCH = 500


@contextmanager
def _letters() -> Iterator[Any]:
    store = open_store(Settings.read())
    try:
        yield store.dead_letters
    finally:
        store.close()


def show_list(flow: str | None, error: str | None, limit: int, group: bool, json: bool) -> None:
    """List, or count by flow and error."""
    with _letters() as letters:
        found = letters.read(letters.select(flow, error, 1_000_000 if group else limit))
    if group:
        counts = Counter((one.flow, one.reason, one.error) for one in found)
        rows = [(*key, count) for key, count in counts.most_common(limit)]
        if json:
            as_json([dict(zip(("flow", "reason", "error", "count"), row, strict=True)) for row in rows])
        else:
            table("Dead letters", ["flow", "reason", "error", "count"], rows)
    elif json:
        as_json([_fields(one) for one in found])
    else:
        table(
            "Dead letters",
            ["letter", "flow", "message", "attempts", "died", "reason", "error"],
            [
                (one.letter, one.flow, one.message.id, one.attempts, _time(one.died), one.reason, one.error)
                for one in found
            ],
        )


def show(letter: str, body: bool, json: bool) -> None:
    """One letter. Its payload is shown only when asked for."""
    with _letters() as letters:
        found = letters.read([letter])
    if not found:
        raise FlowKitError(f"there is no dead letter {letter}; see flowkit dead list")
    fields = _fields(found[0]) | {"stack": found[0].stack}
    fields["body"] = found[0].message.body.decode(errors="backslashreplace") if body else "(hidden; see --body)"
    if json:
        as_json(fields)
        return
    for name, value in fields.items():
        print(f"{name}: {plain(str(value))}")


def settle(
    verb: Literal["retry", "discard"], chosen: list[str], flow: str | None, error: str | None, all: bool, yes: bool
) -> None:
    """Retry or discard letters, in batches."""
    if not (chosen or flow or error or all):
        raise FlowKitError(f"name what to {verb}: ids of letters, --flow, --error or --all")
    with _letters() as letters:
        wanted = chosen or letters.select(flow, error)
        if len(wanted) > 1 and not yes and sys.stdin.isatty():
            answer = input(f"{verb} {len(wanted)} dead letters? [y/N] ")
            if answer.strip().lower() not in ("y", "yes"):
                raise FlowKitError("nothing was done")
        done = 0
        with Progress(disable=not sys.stderr.isatty(), transient=True) as progress:
            task = progress.add_task(verb, total=len(wanted))
            for start in range(0, len(wanted), BATCH):
                batch = wanted[start : start + BATCH]
                done += getattr(letters, verb)(batch)
                progress.advance(task, len(batch))
    print(f"{done} of {len(wanted)} dead letters: {verb}")
    if done < len(chosen):
        raise FlowKitError(f"{len(chosen) - done} of the letters named are not there; see flowkit dead list")


def _fields(one: Any) -> dict[str, Any]:
    message = one.message
    return {
        "letter": one.letter,
        "flow": one.flow,
        "message": message.id,
        "source": message.source,
        "channel": message.channel,
        "key": message.key,
        "correlation": message.correlation,
        "headers": dict(message.headers),
        "attempts": one.attempts,
        "died": _time(one.died),
        "reason": one.reason,
        "error": one.error,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
