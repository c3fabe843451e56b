"""The app with `async def` handlers that tests run in worker processes. CRASH_DIR/runs gets a line for each run."""

import asyncio
import os
import signal
import time
from pathlib import Path

from sqlalchemy.orm import Session

from flowkit import Outbox, RetryPolicy, UnitOfWork
from tests.support.shop import Effect, Order, new_app

RUNS = Path(os.environ.get("CRASH_DIR", ".")) / "runs"

app = new_app("network")
orders = app.channel("orders", Order)
answers = app.channel("answers", Order)
RETRY = RetryPolicy(attempts=3, first="10ms", jitter=0)


@app.flow(orders, to=answers, concurrency=50, deadline="2s", retry=RETRY)
async def fetch(order: Order) -> Order:
    with RUNS.open("a") as file:
        file.write(f"{order.name}\n")
    await asyncio.sleep(0.05)
    if order.deed == "crash":
        os._exit(9)
    if order.deed == "crash in a thread":
        await asyncio.to_thread(os._exit, 9)
    if order.deed == "block":
        time.sleep(3600)
    if order.deed == "wait":
        await asyncio.sleep(1)
    return order


@app.flow(answers, concurrency=50, retry=RETRY)
async def store(order: Order, work: UnitOfWork) -> None:
    def write(db: Session, outbox: Outbox) -> None:
        db.add(Effect(name=order.name))
        if order.deed == "killed in its work":
            os.kill(os.getpid(), signal.SIGKILL)
        if order.deed == "crash in its work":
            os._exit(9)

    await work.run(write)
