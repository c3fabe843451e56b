"""The naive loop on RabbitMQ + PostgreSQL: the same reliable work by hand, one message at a time.

It has one process with one connection to each. For each message: validate it; write inbox, business row and outbox row
in one transaction; publish onward, persistent and mandatory, and wait for the confirm; remove the outbox row;
acknowledge. The queues are quorum queues, and 100 messages are prefetched.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from pika import BasicProperties, BlockingConnection, DeliveryMode, URLParameters

from benchmarks.contender import DEADLINE_SECONDS, Lost, Place, equal
from benchmarks.naive import Naive, named
from benchmarks.work import Order, Style

WORK, AFTER = "naive-work", "naive-after"
PREFETCH = 100
WAIT_SECONDS = 1.0
POLL_SECONDS = 0.05
TABLE = "CREATE TABLE IF NOT EXISTS naive_outbox (id text PRIMARY KEY, body bytea NOT NULL)"
STORE = "INSERT INTO naive_outbox (id, body) VALUES (%s, %s)"
SENT = "DELETE FROM naive_outbox WHERE id = %s"


class NaiveBroker(Naive):
    """Makes its tables in an empty database, and its queues in an empty virtual host."""

    def __init__(self, place: Place, style: Style) -> None:
        super().__init__(place, style)
        self._cursor.execute(TABLE)
        self._broker = BlockingConnection(URLParameters(place.broker))
        self._incoming, self._outgoing = self._broker.channel(), self._broker.channel()
        for queue in (WORK, AFTER):
            self._incoming.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
        self._incoming.basic_qos(prefetch_count=PREFETCH)
        self._outgoing.confirm_delivery()
        self._messages: Iterator[Any] | None = None

    def send(self, orders: Sequence[Order]) -> None:
        filling = self._broker.channel()
        for order in orders:
            filling.basic_publish("", WORK, **message(order))
        filling.close()
        self._await(WORK, len(orders))

    def check(self, count: int) -> None:
        self._incoming.cancel()
        self._await(AFTER, count)
        self._await(WORK, 0)
        for query, wanted in (
            ("SELECT count(*) FROM naive_inbox WHERE flow = 'work'", count),
            ("SELECT count(*) FROM naive_outbox", 0),
            ("SELECT count(*) FROM bench_rows", 0 if self._style == "none" else count),
        ):
            equal(query, self._cursor.execute(query).fetchone()[0], wanted)

    def close(self) -> None:
        self._broker.close()
        super().close()

    def step(self) -> Order | None:
        if self._messages is None:
            self._messages = self._incoming.consume(WORK, inactivity_timeout=WAIT_SECONDS)
        method, properties, body = next(self._messages)
        if method is None or properties is None or body is None:
            return None
        order, id = Order.model_validate_json(body), properties.message_id
        execute = self._cursor.execute
        execute("BEGIN")
        execute(self._receive, (id,))
        if self._cursor.rowcount:
            self._write(order)
            execute(STORE, named(order))
            execute("COMMIT")
            self.committed = time.time()
            self._outgoing.basic_publish("", AFTER, **message(order), mandatory=True)
            execute(SENT, (id,))
        else:
            execute("ROLLBACK")
        self._incoming.basic_ack(method.delivery_tag or 0)
        return order

    def _await(self, queue: str, count: int) -> None:
        """Wait until so many are in a queue."""
        end = time.monotonic() + DEADLINE_SECONDS
        while (found := self._depth(queue)) != count:
            if found > count or time.monotonic() > end:
                raise Lost(f"{found} in {queue}, not {count}")
            time.sleep(POLL_SECONDS)

    def _depth(self, queue: str) -> int:
        return int(self._outgoing.queue_declare(queue, passive=True).method.message_count)


def message(order: Order) -> dict[str, Any]:
    """The arguments of a publish: body and properties."""
    id, body = named(order)
    return {"body": body, "properties": BasicProperties(message_id=id, delivery_mode=DeliveryMode.Persistent)}
