"""Huey: a queue in an SQLite file, and worker threads."""

from collections.abc import Iterator
from pathlib import Path

from huey import SqliteHuey

from benchmarks.peers.part import Brief, Handler, play

BRIEF = Brief.read()
FILE = Path(BRIEF.database.removeprefix("sqlite:///")).with_name("huey.db")
app = SqliteHuey("work", filename=str(FILE), fsync=True, results=False)
afterwards = SqliteHuey("after", filename=str(FILE), fsync=True, results=False)


@app.task()
def handle(body: str) -> None:
    handler(body)


@afterwards.task()
def after(body: str) -> None:
    """Its queue is served by nobody."""


handler = Handler(BRIEF, after)


def fill(bodies: Iterator[str]) -> None:
    for body in bodies:
        handle(body)


def work() -> None:
    app.create_consumer(workers=int(BRIEF.shape), worker_type="thread", periodic=False, initial_delay=0.01).run()


if __name__ == "__main__":
    play(fill, work)
