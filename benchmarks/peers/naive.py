"""The naive loop, by hand, one message at a time."""

from collections.abc import Iterator

from benchmarks.naive_broker import NaiveBroker
from benchmarks.peers.part import Brief, Tally, play
from benchmarks.producer import sender
from benchmarks.work import Order

BRIEF = Brief.read()


def fill(bodies: Iterator[str]) -> None:
    NaiveBroker(BRIEF.place, BRIEF.style).close()
    send = sender(NaiveBroker.name, BRIEF.database, BRIEF.broker)
    for body in bodies:
        send(Order.model_validate_json(body))


def work() -> None:
    contender, tally = NaiveBroker(BRIEF.place, BRIEF.style), Tally(BRIEF.tally)
    while True:
        if order := contender.step():
            tally.add(order.at, contender.committed)


if __name__ == "__main__":
    play(fill, work, lambda count: "")
