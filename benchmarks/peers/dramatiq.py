"""Dramatiq: one process with several threads. It acknowledges when an actor has finished."""

import os
from collections.abc import Iterator

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.cli import main, make_argument_parser

from benchmarks.peers.part import AFTER, Brief, Handler, play

BRIEF = Brief.read()
QUEUE = "work"


class Broker(RabbitmqBroker):
    """Dramatiq's own, which knows classic queues only."""

    def _build_queue_arguments(self, queue_name: str) -> dict[str, object]:
        arguments: dict[str, object] = super()._build_queue_arguments(queue_name)
        return {**arguments, "x-queue-type": "quorum"} if BRIEF.quorum else arguments


broker = Broker(url=BRIEF.broker, confirm_delivery=BRIEF.work == "reliable")
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=AFTER)
def after(body: str) -> None:
    """Its messages stay in its queue."""


@dramatiq.actor(queue_name=QUEUE)
def handle(body: str) -> None:
    handler(body)


handler = Handler(BRIEF, after.send)


def fill(bodies: Iterator[str]) -> None:
    for body in bodies:
        handle.send(body)
    broker.close()


def work() -> None:
    os.environ.setdefault("dramatiq_queue_prefetch", "100")
    options = ["--processes", "1", "--threads", BRIEF.shape, "--queues", QUEUE, "--skip-logging"]
    main(make_argument_parser().parse_args([__spec__.name, *options]))


if __name__ == "__main__":
    play(fill, work)
