"""The floor of a queue in PostgreSQL: it claims, processes and passes on 100 rows in one transaction."""

import signal
import threading
import time
from collections.abc import Iterator

from psycopg import Connection

from benchmarks.peers.part import Brief, Tally, batches, play
from benchmarks.work import Order

BRIEF = Brief.read()
BATCH = 100
TABLE = """
    CREATE TABLE floor_queue (number bigserial PRIMARY KEY, flow text NOT NULL, id text NOT NULL, body text NOT NULL);
    CREATE INDEX floor_queue_flow ON floor_queue (flow, number)"""
ENQUEUE = "INSERT INTO floor_queue (flow, id, body) SELECT %s, * FROM unnest(%s::text[], %s::text[])"
CLAIM = """
    DELETE FROM floor_queue WHERE number IN (
        SELECT number FROM floor_queue WHERE flow = 'work' ORDER BY number LIMIT %s FOR UPDATE SKIP LOCKED)
    RETURNING id, body"""
WORK = """
    WITH given AS (SELECT * FROM unnest(%s::text[], %s::bigint[], %s::double precision[], %s::text[])
                   AS given (id, number, total, body)),
         new AS (INSERT INTO peer_inbox (id) SELECT id FROM given ON CONFLICT DO NOTHING RETURNING id),
         business AS (INSERT INTO bench_rows (id, total) SELECT number, total FROM given JOIN new USING (id) WHERE %s)
    INSERT INTO floor_queue (flow, id, body) SELECT 'after', id, body FROM given JOIN new USING (id)"""


def fill(bodies: Iterator[str]) -> None:
    with Connection.connect(BRIEF.database) as connection:
        connection.execute(TABLE)
        for batch in batches(bodies, 1000):
            ids = [str(Order.model_validate_json(body).id) for body in batch]
            connection.execute(ENQUEUE, ("work", ids, batch))
        connection.execute("ANALYZE")


def work() -> None:
    connection, tally, ended = Connection.connect(BRIEF.database), Tally(BRIEF.tally), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    connection.prepare_threshold = 0
    while not ended.is_set():
        with connection.transaction():
            found = connection.execute(CLAIM, (BATCH,)).fetchall()
            orders = [Order.model_validate_json(body) for _, body in found]
            columns = ([id for id, _ in found], [one.id for one in orders], [one.total for one in orders])
            if found:
                connection.execute(WORK, (*columns, [body for _, body in found], BRIEF.style != "none"))
        committed = time.time()
        for order in orders:
            tally.add(order.at, committed)
        if not found:
            ended.wait(0.05)


def check(count: int) -> str:
    with Connection.connect(BRIEF.database) as connection:
        queries = ("SELECT count(*) FROM peer_inbox", "SELECT count(*) FROM floor_queue WHERE flow = 'after'")
        found = [connection.execute(query).fetchone() for query in queries]
        return "" if found == [(count,), (count,)] else f"inbox and onward: {found}, not {count}"


if __name__ == "__main__":
    play(fill, work, check)
