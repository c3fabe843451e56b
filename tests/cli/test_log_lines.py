"""Lines of the log and of commands: nothing from outside forges one, and what repeats is counted."""

import asyncio
import contextlib
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import flowkit.engine.lane
from flowkit import Reject
from flowkit.cli.commands import main
from flowkit.cli.logs import JsonFormatter, LogWriter, PlainFormatter
from flowkit.cli.repetition import DIFFERENT, SAME, WINDOW_SECONDS, Repetition
from flowkit.web.server import Server
from tests.support.shop import Order, new_app, running

EVIL = "a\n2026-01-01 00:00:00,000 ERROR flowkit.run forged\r\x1b[2J\u2028b\u202ec\u0085\x9b31m"
FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
SECRET = "4111-canary"
MORE = re.compile(r"([\d,]+) more lines? like this one")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """The file of a log to which everything is written, as plain text."""
    path, root = tmp_path / "log", logging.getLogger()
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    writer = LogWriter(descriptor)
    writer.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root.addHandler(writer)
    yield path
    root.removeHandler(writer)
    writer.flush()
    with contextlib.suppress(OSError):
        os.close(descriptor)


def lines(log: Path) -> list[str]:
    for handler in logging.getLogger().handlers:
        handler.flush()
    return log.read_text().splitlines()


def test_what_comes_from_outside_forges_no_line_of_the_log(log: Path) -> None:
    logging.getLogger("flowkit.flow.shop.accept").error("message %s: %s", EVIL, EVIL)
    logging.getLogger("shop").error(EVIL)
    try:
        raise ValueError(EVIL)
    except ValueError:
        logging.getLogger("shop").exception("failed")
    said = lines(log)
    assert [line for line in said if line.startswith("20")] == [said[0], said[1], said[2]]
    assert all(line.startswith("  ") for line in said[3:]), "a traceback is set in"
    assert not FORBIDDEN.search(log.read_text())
    assert "a\\n2026-01-01 00:00:00,000 ERROR flowkit.run forged\\r\\x1b[2J\\u2028b\\u202ec\\x85\\x9b31m" in said[0]


def test_a_json_log_has_one_object_a_line_in_ascii() -> None:
    record = logging.makeLogRecord({"name": "shop", "msg": EVIL, "flow": EVIL})
    text = JsonFormatter().format(record)
    assert (text.isascii(), "\n" in text, json.loads(text)["message"]) == (True, False, EVIL)


@pytest.mark.parametrize("formatter", [PlainFormatter("%(message)s"), JsonFormatter()])
def test_a_traceback_that_flowkit_logs_has_no_data_and_the_apps_is_its_own(formatter: logging.Formatter) -> None:
    try:
        try:
            int(SECRET)
        except ValueError as error:
            raise RuntimeError(f"after {error}") from error
    except RuntimeError:
        here = {"name": "shop", "msg": "failed", "exc_info": sys.exc_info()}
    house = formatter.format(logging.makeLogRecord({**here, "pathname": flowkit.engine.lane.__file__}))
    assert SECRET not in house and "RuntimeError: after " in house
    assert SECRET in formatter.format(logging.makeLogRecord({**here, "pathname": __file__}))


def test_an_error_forges_no_field_of_a_dead_letter(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = new_app()
    orders = app.channel("orders", Order)

    @app.flow(orders)
    def accept(order: Order) -> None:
        raise Reject(order.name)

    forged = f"x\nattempts: 99\nbody: forged{EVIL}"
    with running(app, sqlite_url) as harness:
        headers = {"name\u2028\u202e": "value\u2028\u202e"}
        harness.publish(orders, Order(name=forged), id="id\u2028\u202e", key="key\x9b", headers=headers)
        harness.until_quiet()
        (letter,) = harness.dead()
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", sqlite_url)
    for arguments in (["list"], ["list", "--json"], ["show", letter.letter], ["show", letter.letter, "--body"]):
        monkeypatch.setattr(sys, "argv", ["flowkit", "dead", *arguments])
        with pytest.raises(SystemExit):
            main()
        said = capsys.readouterr().out
        assert not FORBIDDEN.search(said), arguments
        if "show" in arguments:
            fields = [line.partition(":")[0] for line in said.splitlines() if not line.startswith("  ")]
            assert len(fields) == len(set(fields)) == 14, fields
            assert "\nattempts: 1\n" in said


def test_the_failures_of_a_flow_do_not_flood_the_log_and_are_all_kept(log: Path) -> None:
    app, many = new_app(), 300
    orders = app.channel("orders", Order)

    @app.flow(orders)
    def accept(order: Order) -> None:
        raise Reject("no" if order.deed else order.name)

    with running(app, "sqlite://") as harness:
        for number in range(many):
            harness.publish(orders, Order(name=str(number), deed="same" if number % 2 else ""))
        harness.until_quiet()
        assert len(harness.dead()) == many
    said = [line for line in lines(log) if "message" in line]
    counts = [int(found[1]) for line in said if (found := MORE.search(line))]
    assert len(said) - len(counts) + sum(counts) == many, "each is told or counted"
    assert len(said) <= (DIFFERENT + 1) * SAME + 3
    assert sum("Reject: no" in line for line in said) == SAME + 1, "the last one says how many more there were"


def test_the_lines_of_an_app_are_its_own(log: Path) -> None:
    for _ in range(50):
        logging.getLogger("flowkit.flow.shop.accept").warning("late")
    assert len(lines(log)) == 50


def test_a_window_ends_by_the_clock_and_tells_how_many_more() -> None:
    now = [0.0]
    repetition = Repetition(lambda: now[0])
    record = logging.makeLogRecord({"name": "uvicorn.error", "msg": "Invalid HTTP request received."})
    assert [repetition.admits(record) for _ in range(SAME + 2)] == [True] * SAME + [False] * 2
    assert not repetition.over
    now[0] = WINDOW_SECONDS
    assert repetition.over
    assert [one.getMessage() for one in repetition.counts()] == [
        "2 more lines like this one, within 10 s: Invalid HTTP request received."
    ]
    assert not repetition.over
    assert repetition.admits(record)


def test_garbage_behind_pipelined_requests_is_told_to_its_sender_only(caplog: pytest.LogCaptureFixture) -> None:
    """The requests before it are answered. uvicorn by itself would close the connection, and log a stack for each."""

    async def late(request: Request) -> Response:
        await asyncio.sleep(0.02)
        return Response()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(Starlette(routes=[Route("/", late)]), listening, "server")
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                with socket.create_connection(listening.getsockname(), timeout=30) as client:
                    client.sendall(b"GET / HTTP/1.1\r\n\r\n" * 3 + b"\xff" * 7)
                    came = b"".join(iter(lambda: client.recv(4096), b""))
                assert came.count(b"HTTP/1.1 200 OK") == 3
            assert server.close(30)
    assert caplog.records == []
