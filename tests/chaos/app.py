"""The app under chaos. It accepts and invoices an order; an `async def` flow audits the order and sends it on.

CHAOS_DIR gets a file for each process, with a line for each run of a handler, and one for each that failed as ordered.
"""

import asyncio
import os
import random
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from flowkit import FlowKitError, Message, Objects, Outbox, Reject, RetryPolicy
from tests.support.shop import Effect, Order, new_app

# A worker that is killed while a suspect runs alone in it costs that one an attempt: many are killed here.
RETRY = RetryPolicy(attempts=100, first="50ms", factor=1)
STAGES = ("accept", "invoice", "audit")
DEEDS = {"": 72, "slow": 8, "fail": 4, "reject": 2, "swallow": 3, "set": 4, "leave": 2, "fork": 2, "close": 3}
"""What an order has done on its way -> percent of the orders."""
FAILED, DID, OUTLIVED = "failed", "did", "outlived"
CHILD_SECONDS = (1.0, 5.0)
"""A forked child lives that long, whatever becomes of its worker."""

app = new_app("chaos")
orders = app.channel("orders", Order)
accepted = app.channel("accepted", Order)
audited = app.channel("audited", Order)


def ran(flow: str, order: Order) -> None:
    """Note a run."""
    note(f"{flow} {order.name}")


def note(line: str) -> None:
    """One write, which a kill does not tear."""
    path = Path(os.environ["CHAOS_DIR"]) / f"runs-{os.getpid()}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


SLOW_SECONDS = 0.03


def perhaps_fail(order: Order) -> None:
    if order.deed == "fail" and random.random() < 0.5:
        note(FAILED)
        did(order)
        raise RuntimeError("one of the failures that pass")


def did(order: Order) -> None:
    """Note that what an order has done really happened."""
    note(f"{DID} {order.deed}")


def refuse(order: Order, db: Session) -> None:
    """Reject an order, which has written by then, or is about to."""
    if random.random() < 0.5:
        db.flush()
    did(order)
    raise Reject("as ordered")


def trespass(order: Order, db: Session) -> None:
    """Do with a session what must reach no other message."""
    match order.deed:
        case "swallow" if random.random() < 0.5:
            note(FAILED)
            did(order)
            for _ in range(2):
                with suppress(IntegrityError):  # the second: the handler goes on, and must not count
                    db.execute(text("INSERT INTO uniques (name) VALUES (:name)"), {"name": order.name})
        case "close" if random.random() < 0.5:
            note(FAILED)
            did(order)
            driver: Any = db.connection().connection.driver_connection
            driver.close()
        case "fork":
            left.children = [child for child in left.children if os.waitpid(child, os.WNOHANG) == (0, 0)]
            worker, child = os.getpid(), os.fork()
            if child == 0:
                live_on(worker)
            left.children.append(child)
            did(order)


def live_on(worker: int) -> NoReturn:
    """Be a child that its worker does not wait for, and that outlives it where that is killed meanwhile."""
    try:
        time.sleep(random.uniform(*CHILD_SECONDS))
        if os.getppid() != worker:
            note(OUTLIVED)
    finally:
        os._exit(0)


class Left(threading.local):
    """What handlers of this thread left behind."""

    def __init__(self) -> None:
        self.session: Session | None = None
        """The session that the last one left to a thread of its own."""
        self.children: list[int] = []


left = Left()


def write_late(db: Session) -> None:
    """Write as a thread does that a handler left behind, while the next handler has the connection."""
    note(f"{DID} leave")
    with suppress(FlowKitError):
        db.execute(text("INSERT INTO effects (name) VALUES ('late nobody -')"))


def sees_a_neighbour(db: Session) -> bool:
    """Whether what another message has set is seen."""
    seen = "SELECT coalesce(current_setting('chaos.mine', true), '') <> ''"
    if db.get_bind().dialect.name == "sqlite":
        seen = "SELECT count(*) FROM temp.sqlite_master WHERE name = 'mine'"
    return bool(db.scalar(text(seen)))


def leave_a_setting(db: Session) -> None:
    """Set what no other message may see."""
    sqlite = db.get_bind().dialect.name == "sqlite"
    db.execute(text("CREATE TEMP TABLE IF NOT EXISTS mine (name TEXT)" if sqlite else "SET chaos.mine = 'set'"))


@app.flow(orders, to=accepted, retry=RETRY)
def accept(order: Order, message: Message, db: Session) -> Order:
    ran("accept", order)
    db.add(Effect(name=f"accept {order.name} {message.id}"))
    if order.deed == "reject":
        refuse(order, db)
    trespass(order, db)
    if order.deed == "slow":
        time.sleep(SLOW_SECONDS)
    perhaps_fail(order)
    if left.session is not None:
        late = threading.Thread(target=write_late, args=(left.session,))
        late.start()
        late.join()
    left.session = db if order.deed == "leave" else None
    return order


@app.flow(accepted, retry=RETRY)
def invoice(order: Order, message: Message, db: Session) -> None:
    ran("invoice", order)
    if order.deed == "slow":
        time.sleep(SLOW_SECONDS)
    db.add(Effect(name=f"invoice {order.name} {message.id}"))
    perhaps_fail(order)


@app.flow(accepted, to=audited, retry=RETRY)
async def audit(order: Order, objects: Objects, outbox: Outbox) -> None:
    ran("audit", order)
    objects.put(f"audit {order.name}", order.deed)
    outbox.send(audited, order)
    await asyncio.sleep(10 * SLOW_SECONDS if order.deed == "slow" else 0)
    perhaps_fail(order)


@app.flow(audited, retry=RETRY)
def record(order: Order, message: Message, db: Session) -> None:
    ran("record", order)
    if sees_a_neighbour(db):
        db.add(Effect(name=f"seen {order.name} {message.id}"))
    if order.deed == "set":
        leave_a_setting(db)
        did(order)
    db.add(Effect(name=f"audit {order.name} {message.id}"))
