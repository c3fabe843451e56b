"""FlowKit: one worker, as it comes."""

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from queue import SimpleQueue

from benchmarks.contender import Lost
from benchmarks.peers.part import Brief, Tally, play
from benchmarks.producer import sender
from benchmarks.work import Order, bench_app
from benchmarks.worker import FlowKit, FlowKitFromBroker
from flowkit.config import Settings, connect
from flowkit.engine.item import Item
from flowkit.ports import Done

BRIEF = Brief.read()


def fill(bodies: Iterator[str]) -> None:
    orders = map(Order.model_validate_json, bodies)
    first = next(orders)
    if not first.at:
        contender = FlowKit(BRIEF.place, BRIEF.style)
        contender.send([first, *orders])
        contender.close()
        return
    # Who publishes beside a worker has none of its own, which would take some of the messages.
    if BRIEF.shape:
        send = sender(FlowKitFromBroker.name, BRIEF.database, BRIEF.broker)
        for order in chain([first], orders):
            send(order)
        return
    due: SimpleQueue[Order | None] = SimpleQueue()
    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(publish, due)
        for order in chain([first], orders):
            due.put(order)
        due.put(None)
        publishing.result()


def publish(due: "SimpleQueue[Order | None]") -> None:
    """Publish what is due, all of it at once, until nothing more will be."""
    app = bench_app(BRIEF.style)
    app.connect(connect(Settings(database_url=BRIEF.database, broker_url=BRIEF.broker)))
    order = due.get()
    while order is not None:
        orders = [order]
        while due.qsize() and (order := due.get()) is not None:
            orders.append(order)
        app.publish_many("orders", orders)
        order = order and due.get()


def work() -> None:
    contender, tally = FlowKit(BRIEF.place, BRIEF.style), Tally(BRIEF.tally)

    def committed(items: Sequence[Item]) -> None:
        for item in items:
            if isinstance(item.outcome, Done) and isinstance(item.body, Order):
                tally.add(item.body.at)

    for lane in contender.worker.lanes:
        lane.pipeline.observe = committed
    signal.signal(signal.SIGTERM, lambda *_: contender.worker.stop())
    contender.worker.run()
    contender.close()


def check(count: int) -> str:
    contender = FlowKit(BRIEF.place, BRIEF.style)
    try:
        contender.check(count)
    except Lost as error:
        return str(error)
    finally:
        contender.close()
    return ""


if __name__ == "__main__":
    play(fill, work, check)
