"""The demo: 27,004 flights pass the flows, a busy worker is killed, and the results are compared with a plain loop.

It runs on an SQLite database in a temporary folder, or on the empty database that FLOWKIT_DATABASE_URL names. If
FLOWKIT_BROKER_URL is set, it uses that broker.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy import BindParameter, Engine, bindparam, create_engine, inspect, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from examples.flights import data, direct, flows
from flowkit import FlowKitError, sqlite_driver
from flowkit.url import mask

URL = "FLOWKIT_DATABASE_URL"
BROKER = "FLOWKIT_BROKER_URL"
FLOWKIT = [sys.executable, "-m", "flowkit"]
MOST_SECONDS = 300
FROZEN_SECONDS = 0.2

LEDGER = text("""
    SELECT coalesce(sum(accepted), 0), coalesce(sum(applied), 0) FROM flowkit_counters WHERE flow LIKE 'flights.%'""")
HOLDER = text("""
    SELECT worker.id, worker.pid FROM flowkit_workers AS worker JOIN flowkit_messages ON worker = worker.id
    WHERE worker.app = 'flights' AND host = :host GROUP BY worker.id, worker.pid ORDER BY count(*) DESC LIMIT 1""")
HELD = text("SELECT flow, source, id FROM flowkit_messages WHERE worker = :worker AND deliveries > 0")
IDS: BindParameter[str] = bindparam("ids", expanding=True)
WAITING = text("SELECT flow, source, id FROM flowkit_messages WHERE id IN :ids").bindparams(IDS)
APPLIED = text("SELECT flow, source, id FROM flowkit_inbox WHERE state = 1 AND id IN :ids").bindparams(IDS)

console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)


class DemoError(Exception):
    """The demo cannot continue; the text says why."""


class Killed(NamedTuple):
    """A killed worker and its leased messages: (flow, source, id) each."""

    pid: int
    held: set[tuple[str, str, str]]


# ---------------------------------------------------------------- the database


def connect() -> Engine:
    """Create the tables if FlowKit does not, and return an engine that reads the database from outside.

    Raises DemoError if the database cannot be used, or has data of an earlier run.
    """
    if os.environ[URL].startswith("sqlite"):
        engine = create_engine(os.environ[URL], module=sqlite_driver(), connect_args={"timeout": 30})
    else:
        done = subprocess.run([*FLOWKIT, "db", "upgrade"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DemoError(f"flowkit db upgrade ended with {done.returncode}: {done.stderr.strip()}")
        engine = create_engine(make_url(os.environ[URL]).set(drivername="postgresql+psycopg"))
        flows.Base.metadata.create_all(engine)
    if inspect(engine).has_table("flowkit_counters") and progress(engine).accepted:
        raise DemoError(f"the database has flights of an earlier run; let {URL} name an empty one, or unset it")
    return engine


class Numbers(NamedTuple):
    """Numbers of copies, of all flows of the example together."""

    accepted: int
    applied: int


def progress(engine: Engine) -> Numbers:
    with engine.connect() as connection:
        accepted, applied = connection.execute(LEDGER).one()
    return Numbers(int(accepted), int(applied))


def stored(engine: Engine) -> direct.Results:
    """The results that the flows have written."""
    results = direct.Results()
    with Session(engine) as db:
        for flown in db.scalars(select(flows.FlownDay)):
            day = results.day(flown.carrier, flown.day)
            day.flown, day.delay, day.most = flown.flights, flown.delay, flown.most
        for cancelled in db.scalars(select(flows.CancelledDay)):
            results.day(cancelled.carrier, cancelled.day).cancelled = cancelled.flights
        results.alerts = sorted(
            direct.Late(late.carrier, late.number, late.day, late.delay) for late in db.scalars(select(flows.Alert))
        )
    return results


# ---------------------------------------------------------------- the run


def publish(bar: Progress) -> int:
    """Publish every row, as another program would."""
    try:
        return flows.app.publish_many(flows.read, bar.track(list(data.rows()), description="published"))
    finally:
        flows.app.close()


@contextmanager
def workers(log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An instance with two workers, which ends when its flows are idle."""
    command = [*FLOWKIT, "run", str(Path(flows.__file__)), "--workers", "2", "--until-idle"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def run(engine: Engine, bar: Progress, total: int, log: Path) -> Killed:
    """Work until every message is applied, and kill a worker on the way. Raises DemoError."""
    killed: Killed | None = None
    task = bar.add_task("applied", total=total)
    end = time.monotonic() + MOST_SECONDS
    with workers(log) as process:
        while process.poll() is None and time.monotonic() < end:
            applied = progress(engine).applied
            bar.update(task, completed=applied)
            if killed is None and applied > total / 10:
                killed = kill(engine)
                if killed is not None:
                    bar.console.print(f"killed worker {killed.pid} (SIGKILL) while it held {len(killed.held)} messages")
            time.sleep(0.1)
    applied = progress(engine).applied
    bar.update(task, completed=applied)
    if process.returncode != 0 or applied != total:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise DemoError(f"flowkit run ended with {process.returncode} after {applied:,} of {total:,} messages\n{last}")
    if killed is None:
        raise DemoError("no worker held messages when it was to be killed; run the demo again")
    return killed


def kill(engine: Engine) -> Killed | None:
    """Kill the worker with the most leased messages. Returns None if there are none.

    The worker is stopped first, so that its leases do not change between reading them and its death.
    """
    with engine.connect() as connection:
        holder = connection.execute(HOLDER, {"host": socket.gethostname()}).first()
    if holder is None:
        return None
    try:
        os.kill(holder.pid, signal.SIGSTOP)
        time.sleep(FROZEN_SECONDS)
        with engine.connect() as connection:
            held = {(flow, source, id) for flow, source, id in connection.execute(HELD, {"worker": holder.id})}
        os.kill(holder.pid, signal.SIGKILL if held else signal.SIGCONT)
    except ProcessLookupError:  # it ended by itself meanwhile
        return None
    return Killed(holder.pid, held) if held else None


def redelivered(engine: Engine, killed: Killed) -> int:
    """Count the messages of the killed worker that are applied: each was delivered again, to another worker."""
    ids = {"ids": sorted({id for _, _, id in killed.held})}
    with engine.connect() as connection:
        waiting = {(flow, source, id) for flow, source, id in connection.execute(WAITING, ids)}
        applied = {(flow, source, id) for flow, source, id in connection.execute(APPLIED, ids)}
    return len(killed.held & applied - waiting)


# ---------------------------------------------------------------- the report


def carrier_table(results: direct.Results) -> Table:
    table = Table(title="Departures from New York, January 2013")
    for name in ("carrier", "flights", "cancelled", "mean delay", "most delay", "alerts"):
        table.add_column(name, justify="left" if name == "carrier" else "right")
    for code, name in data.carriers().items():
        days = [day for (carrier, _), day in results.days.items() if carrier == code]
        flown, cancelled = sum(day.flown for day in days), sum(day.cancelled for day in days)
        if days:
            table.add_row(
                name,
                f"{flown + cancelled:,}",
                f"{cancelled:,}",
                f"{sum(day.delay for day in days) / flown:.1f} min" if flown else "",
                f"{max(day.most for day in days if day.most is not None):,} min" if flown else "",
                f"{sum(late.carrier == code for late in results.alerts):,}",
            )
    return table


def audit() -> dict[str, Any]:
    """The ledger, as `flowkit audit` prints it. Raises DemoError if the command fails."""
    done = subprocess.run([*FLOWKIT, "audit", "--json"], capture_output=True, text=True, check=False)
    try:
        ledger: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise DemoError(f"flowkit audit ended with {done.returncode}\n{done.stdout}{done.stderr}") from None
    return ledger


def ledger_line(ledger: dict[str, Any]) -> str:
    ends = " + ".join(f"{ledger[name]:,} {name}" for name in ("applied", "dead", "discarded", "expired", "pending"))
    verdict = "balances" if ledger["balanced"] else "does NOT balance"
    return f"the ledger {verdict}: {ledger['accepted']:,} accepted = {ends}"


def demo(folder: Path) -> bool:
    """Run the demo. Returns whether all results are as expected."""
    engine = connect()
    wanted = direct.compute(data.rows())
    console.print(f"database: {make_url(os.environ[URL]).render_as_string(hide_password=True)}")
    if os.environ.get(BROKER):
        console.print(f"broker: {mask(os.environ[BROKER])}")
    columns = TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bar:
        published = publish(bar)
        # validate and split get every row, either statistics or cancellations does, alert gets the late flights
        started = time.monotonic()
        killed = run(engine, bar, 3 * published + len(wanted.alerts), folder / "workers.log")
        seconds = time.monotonic() - started
    found, again, ledger = stored(engine), redelivered(engine, killed), audit()
    engine.dispose()
    console.print(carrier_table(found))
    console.print(f"{published:,} flights, {found.cancelled:,} of them cancelled, in {seconds:.1f} s with two workers")
    console.print(f"killed worker {killed.pid} held {len(killed.held)} messages: {again} were redelivered and applied")
    console.print(ledger_line(ledger), soft_wrap=True)
    console.print(f"compared with a plain loop over the same rows: {'equal' if found == wanted else 'NOT equal'}")
    return found == wanted and bool(ledger["balanced"]) and again == len(killed.held)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="flowkit-flights-") as folder:
        os.environ.setdefault(URL, f"sqlite:///{folder}/flights.db")
        try:
            return 0 if demo(Path(folder)) else 1
        except (DemoError, FlowKitError) as error:
            console.print(f"demo: {error}", markup=False, soft_wrap=True)
            return 1
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            console.print(f"demo: the database that {URL} names: {cause}", markup=False, soft_wrap=True)
            return 1
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())
