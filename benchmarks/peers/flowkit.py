"""FlowKit: one worker, as it comes."""

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

from benchmarks.contender import Lost
from benchmarks.peers.part import Brief, Tally, play
from benchmarks.producer import sender
from benchmarks.work import Order
from benchmarks.worker import FlowKit, FlowKitFromBroker
from flowkit.engine.item import Item
from flowkit.ports import Done

BRIEF = Brief.read()
PUBLISHERS = 16
"""Threads: those that publish at the same time share a transaction."""
ENTRIES = {"": FlowKit, "from the broker": FlowKitFromBroker}


def fill(bodies: Iterator[str]) -> None:
    orders = map(Order.model_validate_json, bodies)
    first = next(orders)
    contender = FlowKit(BRIEF.place, BRIEF.style)
    if first.at:
        send = sender(ENTRIES[BRIEF.shape].name, BRIEF.database, BRIEF.broker)
        with ThreadPoolExecutor(1 if BRIEF.shape else PUBLISHERS) as pool:
            list(pool.map(send, chain([first], orders)))  # as they are due; raises what hindered one
    else:
        contender.send([first, *orders])
    contender.close()


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
