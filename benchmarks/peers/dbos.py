"""DBOS: each message is a durable workflow that a queue in PostgreSQL starts.

Its records of a workflow and of its steps are the inbox and the outbox: a repeated workflow does not send its messages
again.
"""

import signal
import threading
from collections.abc import Iterator

from dbos import DBOS, DBOSClient

from benchmarks.peers.part import Brief, Tally, asked, play
from benchmarks.work import Order

BRIEF = Brief.read()
QUEUE, AFTER = "work", "after"
URL = BRIEF.database.replace("postgresql:", "postgresql+psycopg:")


@DBOS.workflow(name="work")
def handle(body: str) -> None:
    if BRIEF.work == "reliable":
        Order.model_validate_json(body)
        DBOS.enqueue_workflow(AFTER, later, body)
    tally.add()


@DBOS.workflow(name="after")
def later(body: str) -> None:
    """Its queue is served by nobody."""


tally = Tally(BRIEF.tally)


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


def check(count: int) -> str:
    """Who ended, and who waits in the queue that is not served."""
    wanted = {("work", "SUCCESS"): count} | ({("after", "ENQUEUED"): count} if BRIEF.work == "reliable" else {})
    rows = asked(BRIEF, "SELECT name, status, count(*) FROM dbos.workflow_status GROUP BY name, status")
    found = {(name, status): many for name, status, many in rows}
    return "" if found == wanted else f"workflows: {found}, not {wanted}"


if __name__ == "__main__":
    play(fill, work, check)
