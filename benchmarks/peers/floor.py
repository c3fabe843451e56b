"""The floor on RabbitMQ + PostgreSQL: the reliable work by hand in batches of 100, on quorum queues.

It uses bare pika and psycopg, for this work only: no retries, no dead letters, no foreign messages, no second queue.
For each batch it validates the messages; writes inbox, business rows and outbox by one statement in one transaction;
publishes; processes the next batch while the confirms arrive; and acknowledges all at once. It removes the outbox rows
with the next batch, or when no more messages arrive.
"""

import signal
import time
from collections.abc import Iterator
from typing import Any

import pika
from pika import BasicProperties, BlockingConnection, DeliveryMode, SelectConnection, URLParameters
from psycopg import Connection

from benchmarks.peers.part import AFTER, Brief, Tally, play
from benchmarks.work import Order

BRIEF = Brief.read()
QUEUE, BATCH = "work", 100
QUORUM = {"x-queue-type": "quorum"}
IDLE_SECONDS = 0.05
SENT = "DELETE FROM peer_outbox WHERE id = ANY(%s)"
WORK = f"""
    WITH sent AS ({SENT}),
         given AS (SELECT * FROM unnest(%s::text[], %s::bigint[], %s::double precision[], %s::text[])
                   AS given (id, number, total, body)),
         new AS (INSERT INTO peer_inbox (id) SELECT id FROM given ON CONFLICT DO NOTHING RETURNING id),
         business AS (INSERT INTO bench_rows (id, total) SELECT number, total FROM given JOIN new USING (id) WHERE %s)
    INSERT INTO peer_outbox (id, body) SELECT id, body FROM given JOIN new USING (id) RETURNING id, body"""


class Batch:
    """What was published together, and is not confirmed yet."""

    def __init__(self, ids: list[str], orders: list[Order], committed: float, tag: int, left: int) -> None:
        self.ids = ids
        self.orders = orders
        self.committed = committed
        self.tag = tag
        self.left = left


class Floor:
    """Everything happens in callbacks of one event loop."""

    def __init__(self) -> None:
        self._tally = Tally(BRIEF.tally)
        self._cursor: Any = Connection.connect(BRIEF.database, autocommit=True, prepare_threshold=0).cursor()
        self._found: list[tuple[int, bytes]] = []
        self._confirmed = self._published = 0
        self._open: list[Batch] = []
        self._sent: list[str] = []
        """Rows of the outbox that can be removed."""
        self._seen = 0
        self._planned = False
        self.connection = SelectConnection(URLParameters(BRIEF.broker), on_open_callback=self._opened)

    def _opened(self, connection: Any) -> None:
        connection.channel(on_open_callback=self._publishing)

    def _publishing(self, channel: Any) -> None:
        self._out = channel
        channel.confirm_delivery(self._answered, lambda _: self.connection.channel(on_open_callback=self._consuming))

    def _consuming(self, channel: Any) -> None:
        self._in = channel
        channel.basic_qos(prefetch_count=4 * BATCH)
        channel.basic_consume(QUEUE, self._came)
        self._look()

    def _came(self, _: Any, method: Any, properties: Any, body: bytes) -> None:
        self._found.append((method.delivery_tag, body))
        if len(self._found) >= BATCH:
            self._work()
        elif not self._planned:  # what has come already is taken; nothing is waited for
            self._planned = True
            self.connection.ioloop.call_later(0, self._rest)

    def _rest(self) -> None:
        self._planned = False
        if self._found:
            self._work()

    def _work(self) -> None:
        found, self._found = self._found, []
        orders = [Order.model_validate_json(body) for _, body in found]
        ids = [str(order.id) for order in orders]
        columns = (ids, [order.id for order in orders], [order.total for order in orders])
        bodies = [body.decode() for _, body in found]
        self._cursor.execute(WORK, (self._sent, *columns, bodies, BRIEF.style != "none"))
        committed, self._sent = time.time(), []
        onward = self._cursor.fetchall()
        for id, body in onward:
            properties = BasicProperties(message_id=id, delivery_mode=DeliveryMode.Persistent)
            self._out.basic_publish("", AFTER, body, properties, mandatory=True)
        self._published += len(onward)
        self._open.append(Batch([id for id, _ in onward], orders, committed, found[-1][0], self._published))
        self._finish()

    def _answered(self, frame: Any) -> None:
        assert isinstance(frame.method, pika.spec.Basic.Ack), "refused"
        self._confirmed = max(self._confirmed, frame.method.delivery_tag)  # the broker confirms in order, one queue
        self._finish()

    def _finish(self) -> None:
        while self._open and self._open[0].left <= self._confirmed:
            batch = self._open.pop(0)
            self._sent += batch.ids
            self._in.basic_ack(batch.tag, multiple=True)
            for order in batch.orders:
                self._tally.add(order.at, batch.committed)

    def _look(self) -> None:
        """Remove what was sent, where no batch came since the last look."""
        if self._sent and self._seen == self._published:
            self._cursor.execute(SENT, (self._sent,))
            self._sent = []
        self._seen = self._published
        self.connection.ioloop.call_later(IDLE_SECONDS, self._look)


def fill(bodies: Iterator[str]) -> None:
    with BlockingConnection(URLParameters(BRIEF.broker)) as connection:
        channel = connection.channel()
        for queue in (QUEUE, AFTER):
            channel.queue_declare(queue, durable=True, arguments=QUORUM)
        for body in bodies:
            channel.basic_publish("", QUEUE, body.encode(), BasicProperties(delivery_mode=DeliveryMode.Persistent))


def work() -> None:
    loop = Floor().connection.ioloop
    signal.signal(signal.SIGTERM, lambda *_: loop.add_callback_threadsafe(loop.stop))
    loop.start()


if __name__ == "__main__":
    play(fill, work)
