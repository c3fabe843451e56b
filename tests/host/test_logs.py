"""The log: where nobody reads it, nothing waits for it."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy.orm import Session

from flowkit.cli.logs import LINES, LogWriter
from flowkit.services import connect
from flowkit.settings import Settings
from tests.support import ROOT, log_app
from tests.support.shop import Order, effects
from tests.support.waiting import wait_until

MANY = LINES + 500


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def written(reading: int, enough: Callable[[str], bool]) -> str:
    said = b""
    while not enough(said.decode()):
        said += os.read(reading, 65536)
    return said.decode()


def test_what_nobody_reads_is_dropped_and_counted(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LogWriter(writing)
    writer.setFormatter(logging.Formatter("%(message)s"))
    for number in range(MANY):
        writer.handle(logging.makeLogRecord({"msg": f"{number} {'x' * 200}", "levelno": logging.INFO}))
    writer.flush()  # returns, though nobody reads
    said = written(reading, lambda text: text.endswith("\n") and sum(map(told, text.splitlines())) >= MANY)
    kept = [line.split()[0] for line in said.splitlines() if "dropped" not in line]
    assert kept == [str(number) for number in range(len(kept))], "lines that are kept are whole, and in order"
    assert sum(map(told, said.splitlines())) == MANY > len(kept)
    writer.handle(logging.makeLogRecord({"msg": "again", "levelno": logging.INFO}))
    assert written(reading, lambda text: "again" in text) == "again\n"


def test_a_line_that_cannot_be_formatted_is_told_with_the_others(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    writer.setFormatter(logging.Formatter("%(message)s"))
    writer.handle(logging.makeLogRecord({"msg": "%d", "args": ("one",), "levelno": logging.INFO}))
    writer.handle(logging.makeLogRecord({"msg": "and on", "levelno": logging.INFO}))
    said = written(pipe[0], lambda text: "and on" in text)
    assert "TypeError" in said and "'%d'" in said


def test_a_reader_that_went_away_stops_nothing(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    os.close(pipe[0])
    writer.handle(logging.makeLogRecord({"msg": "lost", "levelno": logging.INFO}))
    writer.flush()
    assert any(one.name == "flowkit-log" for one in threading.enumerate())


def told(line: str) -> int:
    """Of how many lines one tells."""
    return int(line.split(maxsplit=1)[0]) if "dropped" in line else 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_writes_its_own_lines(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    child = os.fork()
    if child == 0:
        writer.handle(logging.makeLogRecord({"msg": "by a child", "levelno": logging.INFO}))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(pipe[0], 1000) == b"by a child\n"


@pytest.mark.processes
def test_a_log_that_nobody_reads_holds_up_no_message(sqlite_url: str) -> None:
    services = connect(Settings(database_url=sqlite_url), check=False)
    store: Any = services.store
    log_app.app.connect(services)
    log_app.app.publish_many(log_app.words, [Order(name=str(number)) for number in range(200)])
    environment = {**os.environ, "FLOWKIT_DATABASE_URL": sqlite_url, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flowkit", "run", "tests.support.log_app:app"]
    run = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: applied(store) == {str(number): 1 for number in range(200)})
        log_app.app.publish(log_app.shouts, Order(name="loud"))
        log_app.app.publish(log_app.words, Order(name="after"))
        wait_until(lambda: store.ledger.balances()["talk.shout"].dead == 1)
        wait_until(lambda: "after" in applied(store))
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 0
    finally:
        run.kill()
        run.communicate()
        log_app.app.close()


def applied(store: Any) -> dict[str, int]:
    with Session(store.dialect.engine) as session:
        return effects(session)
