"""Celery: a pool of threads or of processes, with late acknowledgement for the reliable work."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from celery import Celery

from benchmarks.peers.part import AFTER, Brief, Handler, play

BRIEF = Brief.read()
QUEUE = "work"
app = Celery("bench", broker=BRIEF.broker)
app.conf.update(
    task_ignore_result=True,
    task_acks_late=BRIEF.work == "reliable",
    task_default_queue=QUEUE,
    task_default_queue_type="quorum" if BRIEF.quorum else "classic",
    worker_detect_quorum_queues=True,
    worker_prefetch_multiplier=16,
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    broker_transport_options={"confirm_publish": BRIEF.work == "reliable"},
)


def onward(body: str) -> None:
    app.send_task("after", args=[body], queue=AFTER)


@cache
def handler() -> Handler:
    """Made where it is used: in a process of the pool."""
    return Handler(BRIEF, onward)


@app.task(name="work")
def handle(body: str) -> None:
    handler()(body)


def fill(bodies: Iterator[str]) -> None:
    with app.producer_pool.acquire() as producer:
        for body in bodies:
            app.send_task("work", args=[body], queue=QUEUE, producer=producer)


def work() -> None:
    pool, concurrency = BRIEF.shape.split()
    options: list[Any] = ["worker", "--pool", pool, "--concurrency", concurrency, "--loglevel", "WARNING"]
    app.worker_main([*options, "--queues", QUEUE, "--without-gossip", "--without-mingle", "--without-heartbeat"])


if __name__ == "__main__":
    play(fill, work)
