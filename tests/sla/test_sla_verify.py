"""`flowkit sla measure` and `verify`: real instances behind a real balancer, under load, broken on purpose."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flowkit.sla.agreement import read
from flowkit.sla.load import Answer, Load, Request, during, percentile
from flowkit.sla.verification import Event, clauses, windows
from tests.support import ROOT
from tests.support.instances import Instances

AGREEMENT = """
availability = 99.9
[normal]
tps = 40
response = "{response}"
percentile = 90
[minimum]
tps = 10
response = "5s"
at_most = "1m"
[node]
tps = 40
availability = 99
"""
SEND = ("--send", "POST /orders", "--content", '{"name": "{n}"}')


@pytest.fixture
def agreement(tmp_path: Path) -> Path:
    return written(tmp_path, "2s")


def written(folder: Path, response: str) -> Path:
    path = folder / "sla.toml"
    path.write_text(AGREEMENT.replace("{response}", response))
    return path


def flowkit(url: str, *words: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "flowkit", "sla", *map(str, words)],
        env={**os.environ, "FLOWKIT_DATABASE_URL": url, "PYTHONPATH": str(ROOT)},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.processes
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("database", "response", "kept"),
    [pytest.param("postgresql_url", "2s", True, marks=pytest.mark.postgresql), ("sqlite_url", "0.001ms", False)],
)
def test_each_clause_of_an_agreement_is_judged(
    request: pytest.FixtureRequest, database: str, tmp_path: Path, response: str, kept: bool
) -> None:
    database_url = request.getfixturevalue(database)
    Instances(database_url).close()
    path, chart = written(tmp_path, response), tmp_path / "chart.svg"
    done = flowkit(
        database_url, "verify", "tests.support.web_app:app", path, *SEND, "--nodes", "3", "--seconds", "1", "--json"
    )
    assert done.returncode == (0 if kept else 1), done.stderr
    report = json.loads(done.stdout)
    assert report["kept"] is kept
    judged = {one["promise"].split(":")[0].split(",")[0]: one["kept"] for one in report["clauses"]}
    assert judged["normal service while nothing is broken"] is kept
    assert judged["no request fails"] and judged["every accepted message is applied"]
    assert [one["what"] for one in report["events"]] == ["1 of 3 killed", "one frozen", "all replaced, one by one"]
    assert sum(one["tps"] for one in report["windows"]) > 100
    assert not chart.exists()


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_the_capacity_of_an_instance_is_found(sqlite_url: str) -> None:
    Instances(sqlite_url).close()
    done = flowkit(
        sqlite_url, "measure", "tests.support.web_app:app", *SEND, "--seconds", "1", "--response", "1s", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    borne = [one["tps"] for one in found["steps"] if one["borne"]]
    broken = [one["tps"] for one in found["steps"] if not one["borne"]]
    assert found["tps"] == max(borne) < min(broken) <= 1.1 * max(borne)


@pytest.mark.processes
@pytest.mark.parametrize(("path", "content", "status"), [("/ordres", SEND[-1], 404), ("/orders", "{}", 422)])
def test_what_is_refused_is_no_capacity(sqlite_url: str, path: str, content: str, status: int) -> None:
    Instances(sqlite_url).close()
    wrong = ("--send", f"POST {path}", "--content", content, "--seconds", "1")
    done = flowkit(sqlite_url, "measure", "tests.support.web_app:app", *wrong)
    assert done.returncode == 2
    assert f"POST {path} is answered with {status}: see --send and --content" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--send", "POST /orders", "--nodes", "2", "--kill", "2"), "leaves none"),
        (("--send", "orders"), "write a method and a path"),
        (("--send", "POST /orders", "--chart", "chart.txt"), "ends with .svg or .png"),
    ],
)
def test_what_is_asked_wrongly_is_told(sqlite_url: str, agreement: Path, words: tuple[str, ...], said: str) -> None:
    Instances(sqlite_url).close()
    done = flowkit(sqlite_url, "verify", "tests.support.web_app:app", agreement, *words)
    assert done.returncode == 2
    assert said in done.stderr


class Stalling(ThreadingHTTPServer):
    """Answers 202; while `stalled`, later."""

    daemon_threads = True

    def __init__(self) -> None:
        self.going_on = threading.Event()
        self.going_on.set()
        self.seen: list[tuple[str, str, str]] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stalling

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"])).decode()
        self.server.going_on.wait()
        self.server.seen.append((self.path, content, self.headers["idempotency-key"]))
        self.send_response(503 if content == '"no"' else 202)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[Stalling]:
    with Stalling() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_who_stalls_is_charged_with_all_that_it_kept_waiting(server: Stalling) -> None:
    load = Load("127.0.0.1", server.server_address[1], Request("POST", "/a/{n}", '{"n": {n}}'), 200, clients=4)
    while load.now < 0.5:
        time.sleep(0.01)
    server.going_on.clear()
    while load.now < 1.5:
        time.sleep(0.01)
    server.going_on.set()
    while load.now < 2:
        time.sleep(0.01)
    answers = load.stop()
    assert {one.status for one in answers} == {202}
    assert [round(one.due * 200) for one in answers] == list(range(len(answers)))
    late = during(answers, 0.6, 1.4)
    assert len(late) == 160, "those that could not even be sent count as well"
    assert all(one.took >= 1.5 - one.due for one in late)
    assert {'{"n": 0}', '{"n": 1}'} <= {content for _, content, _ in server.seen}
    assert len({key for *_, key in server.seen}) == len(answers)


def test_a_request_that_fails_is_tried_once_more_under_the_same_key(server: Stalling) -> None:
    load = Load("127.0.0.1", server.server_address[1], Request("POST", "/", '"no"'), 100, clients=2)
    while load.now < 0.2:
        time.sleep(0.01)
    answers = load.stop()
    assert {(one.status, one.tries, one.good) for one in answers} == {(503, 2, False)}
    assert len(server.seen) == 2 * len({key for *_, key in server.seen}) == 2 * len(answers)


def test_windows_and_clauses_by_hand(agreement: Path) -> None:
    agreed = read(agreement)
    good = [Answer(number / 40, 0.01, 202, 1, str(number)) for number in range(400)]
    calm = windows(good, agreed)
    assert [(one.tps, one.below_normal, one.below_minimum) for one in calm] == [(40, False, False)] * 9
    broken = [one._replace(status=503) if 2 <= one.due < 4 else one for one in good]
    seen = windows(broken, agreed)
    assert [one.begin for one in seen if one.below_normal] == [one.begin for one in seen if one.below_minimum] == [2, 3]
    judged = clauses(agreed, [Event("killed", 2, 4)], seen, broken, {"applied": 320})
    assert [one.kept for one in judged] == [True, True, True, False, True]
    judged = clauses(agreed, [], seen, broken, {"applied": 319, "lost": 1})
    assert [one.kept for one in judged] == [False, True, True, False, False]
    strict = agreed.model_copy(update={"availability": 99.99999})
    assert not clauses(strict, [], seen, broken, {"applied": 320})[2].kept


def test_percentiles() -> None:
    assert percentile([3, 1, 2], 50) == 2
    assert percentile(range(100), 99) == 98, "99 % of them do not exceed it"
    assert percentile(range(200), 99.9) == 199
    assert percentile([1], 100) == 1
