"""The command line in the process of the test, and its terminal."""

import io
import json
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flowkit.cli import main

APP = """
import time
from pathlib import Path
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from flowkit import App, Reject, RetryPolicy

class Base(DeclarativeBase):
    pass

class Row(Base):
    __tablename__ = "effects"
    row: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[int]

class Order(BaseModel):
    id: int
    deed: str = ""

app = App("shop", metadata=Base.metadata)
received = app.channel("orders.received", Order)
accepted = app.channel("orders.accepted", Order)
notes = app.channel("notes", str)

@app.flow(received, to=accepted, retry=RetryPolicy(attempts=2, first="10ms"))
def accept(order: Order, db: Session) -> Order:
    if order.deed == "sleep":
        time.sleep(0.01)
    if order.deed == "hang":
        db.flush()
        Path("hanging").touch()  # flowkit: stateless
        time.sleep(600)
    if order.deed == "commit":
        db.connection().connection.driver_connection.execute("COMMIT")
    db.add(Row(id=order.id))
    return order

@app.flow(accepted)
def done(order: Order) -> None:
    if order.deed == "reject":
        raise Reject(f"no {order.id % 2} \\x1b[31m\\nred")

@app.flow(notes)
def note(body: str) -> None:
    pass
"""


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Terminal:
    """Runs commands in this process, in a folder with the app and its database."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str, stdin: bytes = b"") -> Result:
        self._monkeypatch.setattr(sys, "argv", ["flowkit", *arguments])
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return Result(code if isinstance(code, int) else 0, *self._capsys.readouterr())

    def drain(self) -> None:
        """Work until nothing is left, retries included."""
        from flowkit.cli.load import load
        from flowkit.engine.worker import Worker
        from flowkit.services import connect
        from flowkit.settings import Settings

        services = connect(Settings.read())
        app = load("shop.py")
        worker = Worker(app, services)
        end = time.monotonic() + 30
        while worker.step() or any(services.store.ledger.pending(list(app.flows))):
            assert time.monotonic() < end
        worker.close()
        services.close()

    def dead(self, count: int) -> list[str]:
        """Make dead letters. Returns their ids."""
        lines = [json.dumps({"id": number, "deed": "reject"}) for number in range(count)]
        (self.folder / "rejected.jsonl").write_text("\n".join(lines))
        assert self("send", "shop.py", "orders.received", "@rejected.jsonl").out == f"{count}\n"
        self.drain()
        return [one["letter"] for one in self("dead", "list", "--json", "--limit", str(count)).json]

    def sql(self, statement: str) -> list[Any]:
        with closing(sqlite3.connect(self.folder / "flowkit.db")) as connection, connection:
            return connection.execute(statement).fetchall()
