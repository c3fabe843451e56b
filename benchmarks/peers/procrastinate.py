"""Procrastinate: a queue in PostgreSQL. Its worker runs coroutines at once, and plain functions on threads.

It gets as many threads and connections as concurrent jobs: its defaults on two cores are six threads and four
connections.
"""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from procrastinate import App, PsycopgConnector, SyncPsycopgConnector

from benchmarks.peers.part import Brief, Handler, asked, batches, checked, play

BRIEF = Brief.read()
QUEUE, AFTER = "work", "after"
AT_ONCE = int(BRIEF.shape)
app = App(connector=PsycopgConnector(conninfo=BRIEF.database, min_size=AT_ONCE, max_size=AT_ONCE))
producer = App(connector=SyncPsycopgConnector(conninfo=BRIEF.database))


def enlist(connection: Any, body: str) -> None:
    producer.configure_task("after", queue=AFTER, allow_unknown=True, connection=connection).defer(body=body)


async def noop(body: str) -> None:
    handler(body)


def reliable(body: str) -> None:
    handler(body)


handler = Handler(BRIEF, enlist=enlist)
handle = app.task(name="work", queue=QUEUE)(noop if BRIEF.work == "no-op" else reliable)


def fill(bodies: Iterator[str]) -> None:
    async def send() -> None:
        async with app.open_async():
            await app.schema_manager.apply_schema_async()
            for batch in batches(bodies, 100):
                await handle.batch_defer_async(*({"body": body} for body in batch))

    asyncio.run(send())


def work() -> None:
    async def serve() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(AT_ONCE))
        async with app.open_async():
            await app.run_worker_async(queues=[QUEUE], concurrency=AT_ONCE, install_signal_handlers=True)

    asyncio.run(serve())


def check(count: int) -> str:
    query = "SELECT count(*) FROM procrastinate_jobs WHERE queue_name = 'after'"
    return checked(count, lambda: asked(BRIEF, query)[0][0])


if __name__ == "__main__":
    play(fill, work, check)
