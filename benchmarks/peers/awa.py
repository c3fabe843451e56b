"""Awa: a queue in PostgreSQL whose core is written in Rust; its handlers are coroutines."""

import asyncio
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from awa import AsyncClient, Client, Job

from benchmarks.peers.part import Brief, Handler, batches, play

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


async def serve() -> None:
    client, producer = AsyncClient(BRIEF.database), Client(BRIEF.database)
    handler = Handler(BRIEF, lambda body: producer.insert(After(body), queue=AFTER))

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


if __name__ == "__main__":
    play(fill, work)
