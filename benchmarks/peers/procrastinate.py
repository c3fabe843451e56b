"""Procrastinate: a queue in PostgreSQL. Its worker runs so many coroutines at once, and threads for plain functions."""

import asyncio
from collections.abc import Iterator

from procrastinate import App, PsycopgConnector

from benchmarks.peers.part import Brief, Handler, batches, play

BRIEF = Brief.read()
QUEUE, AFTER = "work", "after"
app = App(connector=PsycopgConnector(conninfo=BRIEF.database))
defer = App(connector=PsycopgConnector(conninfo=BRIEF.database).get_sync_connector())


def onward(body: str) -> None:
    defer.configure_task("after", queue=AFTER, allow_unknown=True).defer(body=body)


async def noop(body: str) -> None:
    handler(body)


def reliable(body: str) -> None:
    handler(body)


handler = Handler(BRIEF, onward)
handle = app.task(name="work", queue=QUEUE)(noop if BRIEF.work == "no-op" else reliable)


def fill(bodies: Iterator[str]) -> None:
    async def send() -> None:
        async with app.open_async():
            await app.schema_manager.apply_schema_async()
            for batch in batches(bodies, 100):
                await handle.batch_defer_async(*({"body": body} for body in batch))

    asyncio.run(send())


def work() -> None:
    defer.open()
    app.run_worker(queues=[QUEUE], concurrency=int(BRIEF.shape), install_signal_handlers=True)


if __name__ == "__main__":
    play(fill, work)
