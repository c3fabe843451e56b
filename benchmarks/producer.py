"""An open-loop producer in a separate process: one order every 5 ms, regardless of earlier ones."""

import sys
import time
from collections.abc import Callable
from typing import Any

from pika import BlockingConnection, URLParameters

from benchmarks.naive import ENQUEUE, Naive, named
from benchmarks.naive_broker import WORK, message
from benchmarks.work import Order, bench_app
from benchmarks.worker import FlowKit
from flowkit.services import connect, open_store
from flowkit.settings import Settings
from flowkit.transports.rabbitmq.queues import Queues

RATE = 200
START_SECONDS = 0.5


def sender(contender: str, url: str, broker: str) -> Callable[[Order], object]:
    """What sends one order to the contender's queue, and returns when it is safe there."""
    settings = Settings(database_url=url, broker_url=broker)
    store = open_store(settings, check=False)
    if broker and contender != FlowKit.name:
        queue = WORK if contender == Naive.name else Queues(store.identity()).name("bench.work")
        channel = BlockingConnection(URLParameters(broker)).channel()
        channel.confirm_delivery()
        return lambda order: channel.basic_publish("", queue, **message(order), mandatory=True)
    if contender == Naive.name:
        driver: Any = store.dialect.engine.connect().connection.driver_connection
        cursor = driver.cursor()
        statement = ENQUEUE if store.dialect.name == "sqlite" else ENQUEUE.replace("?", "%s")
        return lambda order: cursor.execute(statement, ("work", *named(order)))
    app = bench_app("none")
    app.connect(connect(settings))
    return lambda order: app.publish("orders", order)


def main(contender: str, url: str, broker: str, count: int) -> None:
    """Send. Each order carries the time at which it was meant to be sent."""
    send = sender(contender, url, broker)
    begin = time.time() + START_SECONDS
    for number in range(count):
        at = begin + number / RATE
        time.sleep(max(0.0, at - time.time()))
        send(Order(id=number, at=at))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
