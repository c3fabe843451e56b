"""The app whose handlers start processes, for tests that run it in worker processes. CHILDREN_DIR/runs gets a line for
each run: the order, the worker's process, and the process that it started."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

from sqlalchemy.orm import Session

from flowkit import Outbox, UnitOfWork, web
from tests.support.shop import FAST, Effect, Order, new_app

RUNS = Path(os.environ.get("CHILDREN_DIR", ".")) / "runs"
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]

app = new_app("children")
orders = app.channel("orders", Order)
calls = app.channel("calls", Order)
pages = web.post("/pages")


def square(number: int) -> int:
    return number * number


def note(order: Order, child: int = 0) -> None:
    with RUNS.open("a") as file:
        file.write(f"{order.name} {os.getpid()} {child}\n")


def fork(child: str) -> int:
    """A bare fork, which does this in the child."""
    pid = os.fork()
    if pid == 0:
        if child == "exec":
            os.execv(sys.executable, SLEEP)
        elif child == "publish":
            try:
                app.publish(orders, Order(name="from a child"))
            finally:
                os._exit(0)
        elif child == "sleep":
            time.sleep(600)
            os._exit(0)
    return pid


def start(deed: str) -> int:
    """Do what an order says. Returns the process that goes on, or 0."""
    if deed in ("fork", "forkserver", "spawn"):
        with multiprocessing.get_context(deed).Pool(2) as pool:
            assert pool.map(square, range(4)) == [0, 1, 4, 9]
    elif deed == "subprocess":
        subprocess.run([sys.executable, "-c", ""], check=True, preexec_fn=os.getpid)
    elif deed == "system":
        os.system("true")
    elif deed in ("come back", "publish"):
        child = fork(deed)
        if child:
            os.waitpid(child, 0)
    elif deed == "orphan":
        os.system("sh -c 'exit 3' &")
    elif deed == "leave open":
        return subprocess.Popen(SLEEP, close_fds=False, start_new_session=True).pid
    elif deed == "spawn and leave":
        return os.posix_spawn(sys.executable, SLEEP, os.environ)
    elif deed in ("fork and exec", "fork and sleep"):
        return fork(deed.rsplit(maxsplit=1)[-1])
    return 0


@app.flow(orders, retry=FAST)
def work(order: Order, db: Session) -> None:
    db.add(Effect(name=order.name))
    db.flush()
    worker, child = os.getpid(), start(order.deed)
    if os.getpid() == worker:
        note(order, child)


@app.flow(calls, retry=FAST)
async def call(order: Order, work: UnitOfWork) -> None:
    if order.deed == "in a coroutine":
        start("come back")

    def write(db: Session, outbox: Outbox) -> None:
        db.add(Effect(name=order.name))
        if order.deed == "in its work":
            start("come back")

    await work.run(write)
    note(order)


@app.flow(pages)
def serve(order: Order) -> None:
    start(order.deed)
