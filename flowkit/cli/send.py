"""`flowkit send`: publish from the command line."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.progress import Progress

from flowkit.app import App
from flowkit.channel import Channel
from flowkit.cli.load import load
from flowkit.errors import FlowKitError, Undecodable


def send(name: str, channel_name: str, body: str, key: str | None, id: str | None, delay: str) -> None:
    """Publish one message and print its id, or one for each line and print their count."""
    app = load(name)
    channel = app.channels.get(channel_name)
    if channel is None:
        raise FlowKitError(
            f"app {app.name} has no channel {channel_name}; its channels are {', '.join(sorted(app.channels))}"
        )
    try:
        if body != "-" and not body.startswith("@"):
            print(app.publish(channel, _decode(channel, body, ""), key=key, id=id, delay=delay))
            return
        if key or id or delay != "0s":
            raise FlowKitError("--key, --id and --delay are for one message; give it as an argument")
        print(_send_lines(app, channel, body))
    finally:
        app.close()


def _send_lines(app: App, channel: Channel[Any], body: str) -> int:
    if body == "-":
        return app.publish_many(channel, _values(channel, sys.stdin.buffer))
    path = Path(body[1:])
    if not path.is_file():
        raise FlowKitError(f"there is no file {path}")
    with path.open("rb") as lines, Progress(disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task(f"sending to {channel.name}", total=path.stat().st_size)

        def followed() -> Iterator[bytes]:
            for line in lines:
                progress.advance(task, len(line))
                yield line

        return app.publish_many(channel, _values(channel, followed()))


def _values(channel: Channel[Any], lines: Iterable[bytes]) -> Iterator[Any]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _decode(channel, line, f"line {number}: ")


def _decode(channel: Channel[Any], body: str | bytes, where: str) -> Any:
    try:
        return channel.body.decode(body.encode() if isinstance(body, str) else body)
    except Undecodable as error:
        raise FlowKitError(f"{where}not a message for channel {channel.name}: {error}") from None
