"""An open-loop producer, run as a process of its own: one order every 5 ms, whatever happens to those before."""

import sys
import time

from benchmarks.naive import Naive
from benchmarks.work import Order, bench_app
from flowkit.config import Settings, connect, open_store

RATE = 200


def main(contender: str, url: str, count: int) -> None:
    """Send to the contender's queue. Each order carries the time at which it was meant to be sent."""
    if contender == Naive.name:
        store = open_store(Settings(database_url=url))
        connection = store.dialect.engine.raw_connection()
        mark = "?" if store.dialect.name == "sqlite" else "%s"
        statement = f"INSERT INTO naive_queue (flow, id, body) VALUES ('work', {mark}, {mark})"

        def send(order: Order) -> None:
            connection.driver_connection.execute(statement, (f"order-{order.id}", order.model_dump_json().encode()))
    else:
        app = bench_app("none")
        app.connect(connect(Settings(database_url=url)))

        def send(order: Order) -> None:
            app.publish("orders", order)

    begin = time.time() + 0.3
    for number in range(count):
        at = begin + number / RATE
        time.sleep(max(0.0, at - time.time()))
        send(Order(id=number, at=at))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
