"""FlowKit: one worker with default settings."""

import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from queue import SimpleQueue

from benchmarks.contender import Lost
from benchmarks.peers.part import Brief, Tally, play
from benchmarks.producer import sender
from benchmarks.work import Order
from benchmarks.worker import FlowKit, FlowKitFromBroker
from flowkit import App
from flowkit.engine.item import Item
from flowkit.ports import Done

BRIEF = Brief.read()


def fill(bodies: Iterator[str]) -> None:
    contender = FlowKit(BRIEF.place, BRIEF.style)
    send = sender(FlowKitFromBroker.name, BRIEF.database, BRIEF.broker) if BRIEF.shape else None
    orders = map(Order.model_validate_json, bodies)  # from the first one that is taken on they are due
    first = next(orders)
    if not first.at:
        contender.send([first, *orders])
    elif send:
        for order in chain([first], orders):
            send(order)
    else:
        due: SimpleQueue[Order | None] = SimpleQueue()
        with ThreadPoolExecutor(1) as pool:
            publishing = pool.submit(publish, contender.app, due)
            for order in chain([first], orders):
                due.put(order)
            due.put(None)
            publishing.result()
    contender.close()


def publish(app: App, due: "SimpleQueue[Order | None]") -> None:
    """Publish what is due, all of it at once, until nothing more will be."""
    order = due.get()
    while order is not None:
        orders = [order]
        while due.qsize() and (order := due.get()) is not None:
            orders.append(order)
        app.publish_many("orders", orders)
        order = order and due.get()


def work() -> None:
    contender, tally = FlowKit(BRIEF.place, BRIEF.style), Tally(BRIEF.tally)

    def observe(items: Sequence[Item]) -> None:
        committed = time.time()
        for item in items:
            if isinstance(item.outcome, Done) and isinstance(item.body, Order):
                tally.add(item.body.at, committed)

    worker = contender.worker(observe)
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    worker.run()
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
