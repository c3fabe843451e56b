"""FastStream on uvloop: it runs as many handlers at once as it prefetches messages, and acknowledges after each."""

import time
from collections.abc import Iterator

import uvloop
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue
from psycopg_pool import AsyncConnectionPool

from benchmarks.peers.part import AFTER, INSERT, RECEIVE, SENT, STORE, Brief, Tally, play
from benchmarks.work import Order

BRIEF = Brief.read()
KIND = QueueType.QUORUM if BRIEF.quorum else QueueType.CLASSIC
QUEUE, ONWARD = (RabbitQueue(name, queue_type=KIND, durable=True) for name in ("work", AFTER))
AT_ONCE = int(BRIEF.shape)
RECEIVED, INSERTED, STORED, DONE = (one.replace("?", "%s") for one in (RECEIVE, INSERT, STORE, SENT))
broker = RabbitBroker(BRIEF.broker, default_channel=Channel(prefetch_count=AT_ONCE), logger=None)
app = FastStream(broker, logger=None)
tally = Tally(BRIEF.tally)
CONNECTIONS = min(AT_ONCE, 30)
pool = AsyncConnectionPool(
    BRIEF.database, min_size=CONNECTIONS, open=False, kwargs={"autocommit": True, "prepare_threshold": 0}
)


async def reliable(body: str) -> None:
    order = Order.model_validate_json(body)
    async with pool.connection() as connection:
        cursor = connection.cursor()
        await cursor.execute("BEGIN")
        await cursor.execute(RECEIVED, (str(order.id),))
        new = cursor.rowcount == 1
        if new:
            if BRIEF.style != "none":
                await cursor.execute(INSERTED, (order.id, order.total))
            await cursor.execute(STORED, (str(order.id), body))
        await cursor.execute("COMMIT")
        committed = time.time()
        if new:
            await broker.publish(body, ONWARD, persist=True)
            await cursor.execute(DONE, (str(order.id),))
    tally.add(order.at, committed)


@broker.subscriber(QUEUE, ack_policy=AckPolicy.NACK_ON_ERROR)
async def handle(body: str) -> None:
    if BRIEF.work == "reliable":
        await reliable(body)
    else:
        tally.add()


@app.on_startup
async def begin() -> None:
    if BRIEF.work == "reliable":
        await pool.open(wait=True)
        await broker.connect()
        await broker.declare_queue(ONWARD)


@app.on_shutdown
async def end() -> None:
    await pool.close()


def fill(bodies: Iterator[str]) -> None:
    async def send() -> None:
        async with RabbitBroker(BRIEF.broker, logger=None) as producer:
            await producer.declare_queue(QUEUE)
            for body in bodies:
                await producer.publish(body, QUEUE, persist=True)

    uvloop.run(send())


def work() -> None:
    uvloop.run(app.run())


if __name__ == "__main__":
    play(fill, work)
