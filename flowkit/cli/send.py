"""`flowkit send`: publish from the command line."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import Progress

from flowkit.app import BULK, App
from flowkit.cli.load import load
from flowkit.errors import DefinitionError, FlowKitError, OutcomeUnknown, Undecodable
from flowkit.model.channel import Channel


def send(name: str, channel_name: str, body: str, key: str | None, id: str | None, delay: str) -> None:
    """Publish one message and print its id, or one message for each line and print their count. Blocks."""
    app = load(name)
    channel = app.channels.get(channel_name)
    if channel is None:
        raise DefinitionError(
            f"app {app.name} has no channel {channel_name}; its channels are {', '.join(sorted(app.channels))}"
        )
    try:
        one, lines = _read(channel, body)
        if one is not None:
            print(app.publish(channel, _decode(channel, one, ""), key=key, id=id, delay=delay))
            return
        if key or id or delay != "0s":
            raise FlowKitError("--key, --id and --delay are for one message, and there are several lines")
        print(_send_lines(app, channel, lines))
    finally:
        app.close()


def _read(channel: Channel[Any], body: str) -> tuple[bytes | None, Iterable[bytes]]:
    """Read `body`. Returns one message, or None and the lines of several. Standard input may be one JSON document on
    several lines."""
    if body.startswith("@"):
        return None, _lines_of(Path(body[1:]), channel)
    if body != "-":
        return body.encode(errors="surrogateescape"), ()
    first, second = sys.stdin.buffer.readline(), sys.stdin.buffer.readline()
    if not first:
        return None, ()
    if not second:
        return first.rstrip(b"\r\n"), ()
    if channel.body.raw is None and _unfinished(first):
        return first + second + sys.stdin.buffer.read(), ()
    return None, _chain(first, second)


def _unfinished(line: bytes) -> bool:
    """Whether a line begins a JSON document that continues on the next line."""
    return line.rstrip().endswith((b"{", b"[", b",", b":"))


def _chain(*first: bytes) -> Iterator[bytes]:
    yield from first
    yield from sys.stdin.buffer


def _lines_of(path: Path, channel: Channel[Any]) -> Iterator[bytes]:
    """The lines of a file, with a progress bar on a terminal."""
    if not path.is_file():
        raise FlowKitError(f"there is no file {path}")
    with path.open("rb") as lines, Progress(disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task(f"sending to {channel.name}", total=path.stat().st_size)
        for line in lines:
            progress.advance(task, len(line))
            yield line


def _send_lines(app: App, channel: Channel[Any], lines: Iterable[bytes]) -> int:
    values = Values(channel, lines)
    with values.told():
        return app.publish_many(channel, values)


class Values:
    """The messages in lines, and the number of the last committed line. Empty lines are skipped."""

    def __init__(self, channel: Channel[Any], lines: Iterable[bytes]) -> None:
        self._channel = channel
        self._lines = lines
        self._committed = 0

    def __iter__(self) -> Iterator[Any]:
        count = 0
        for number, line in enumerate(self._lines, 1):
            if line.strip():
                yield _decode(self._channel, line.rstrip(b"\r\n"), f"line {number}: ")
                count += 1
                if count % BULK == 0:
                    self._committed = number

    @contextmanager
    def told(self) -> Iterator[None]:
        """If an error is raised, print which lines were sent."""
        try:
            yield
        except BaseException as error:
            sent = f"lines 1 to {self._committed} were sent" if self._committed else "nothing was sent"
            certain = isinstance(error, FlowKitError) and not isinstance(error, OutcomeUnknown)
            rest = "" if certain else f", except perhaps the next {BULK} messages"
            print(f"flowkit: {sent}{rest}", file=sys.stderr)
            raise


def _decode(channel: Channel[Any], body: bytes, where: str) -> Any:
    try:
        value = channel.body.decode(body)
        channel.body.encode(value)  # or an error would come later, within a batch, without its line
    except (Undecodable, TypeError) as error:
        why = str(error).removeprefix(f"channel {channel.name}: ")
        raise FlowKitError(f"{where}not a message for channel {channel.name}: {why}") from None
    return value
