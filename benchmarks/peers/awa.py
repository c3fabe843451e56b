"""Awa: a queue in PostgreSQL with a core in Rust. Its handlers are coroutines."""

import asyncio
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from awa import AsyncClient, Client, Job, bridge

from benchmarks.peers.part import Brief, Handler, batches, checked, play

BRIEF = Brief.read()
QUEUE, AFTER = "work", "after"


@dataclass
class Work:
    body: str


@dataclass
class After:
    body: str


def fill(bodies: Iterator[str]) -> None:
    client = Client(BRIEF.database)
    client.migrate()
    client.install_queue_storage()
    for batch in batches(bodies, 1000):
        client.enqueue_many_copy([Work(body) for body in batch], queue=QUEUE)


def enlist(connection: Any, body: str) -> None:
    bridge.insert_job_sync(connection, After(body), queue=AFTER)


async def serve() -> None:
    client = AsyncClient(BRIEF.database)
    handler = Handler(BRIEF, enlist=enlist)

    @client.task(Work, queue=QUEUE)
    async def handle(job: "Job[Work]") -> None:
        if BRIEF.work == "no-op":
            handler(job.args.body)
        else:
            await asyncio.to_thread(handler, job.args.body)

    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(30))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await client.start([(QUEUE, int(BRIEF.shape))])
    await ended.wait()
    await client.shutdown()


def work() -> None:
    asyncio.run(serve())


def check(count: int) -> str:
    stats = Client(BRIEF.database).queue_stats()
    return checked(count, lambda: sum(one.total_queued for one in stats if one.queue == AFTER))


if __name__ == "__main__":
    play(fill, work, check)
