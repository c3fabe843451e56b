"""DBOS: each message is a durable workflow that a queue in PostgreSQL starts."""

import signal
import threading
from collections.abc import Iterator

from dbos import DBOS, DBOSClient

from benchmarks.peers.part import Brief, Handler, play

BRIEF = Brief.read()
QUEUE, AFTER = "work", "after"
URL = BRIEF.database.replace("postgresql:", "postgresql+psycopg:")


@DBOS.workflow(name="work")
def handle(body: str) -> None:
    handler(body)


def onward(body: str) -> None:
    DBOS.enqueue_workflow(AFTER, later, body)


@DBOS.workflow(name="after")
def later(body: str) -> None:
    """Its queue is served by nobody."""


handler = Handler(BRIEF, onward)


def fill(bodies: Iterator[str]) -> None:
    launch()
    client = DBOSClient(system_database_url=URL)
    for body in bodies:
        client.enqueue({"workflow_name": "work", "queue_name": QUEUE}, body)
    client.destroy()
    DBOS.destroy()


def work() -> None:
    launch(QUEUE)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    DBOS.destroy()


def launch(*queues: str) -> None:
    """Start, and listen to these queues only."""
    DBOS(config={"name": "bench", "system_database_url": URL, "application_version": "1", "console_log_level": "ERROR"})
    DBOS.listen_queues(list(queues))
    DBOS.launch()
    for queue in (QUEUE, AFTER):
        DBOS.register_queue(queue, worker_concurrency=int(BRIEF.shape), polling_interval_sec=0.01)


if __name__ == "__main__":
    play(fill, work)
