"""Secrets of messages: what is told of errors holds none of their data."""

import os
import subprocess
import sys
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy.exc import OperationalError

from flowkit.cli.commands import main
from flowkit.disclosure import told
from flowkit.services import connect
from flowkit.settings import Settings
from flowkit.web.metrics import Metrics
from tests.support import ROOT, canary_app
from tests.support.shop import Base

SECRET = "4111-canary-3f9a"


def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What a command prints."""
    monkeypatch.setattr(sys, "argv", ["flowkit", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main()
    out, err = capsys.readouterr()
    return out + err


@pytest.mark.processes
def test_data_of_messages_are_in_no_output(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", database_url)
    said(capsys, monkeypatch, "db", "upgrade")
    services = connect(Settings(database_url=database_url))
    store: Any = services.store
    Base.metadata.create_all(store.dialect.engine)
    canary_app.app.connect(services)
    headers = {"authorization": f"Bearer {SECRET}", "tenant": SECRET}
    for _ in range(2):
        canary_app.app.publish(canary_app.orders, {"name": SECRET}, headers=headers)
    canary_app.app.close()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FLOWKIT_LOG_LEVEL": "DEBUG"}
    exporters = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "console"}
    run = subprocess.run(
        [sys.executable, "-m", "flowkit", "run", "tests.support.canary_app:app", "--until-idle"],
        env=environment | exporters, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "flow canary.duplicate: message" in run.stderr and '"exception.type": "ValueError"' in run.stdout
    assert "the card … is refused" in run.stderr, "what the source says is told"
    assert "executes `SET LOCAL app.card = …`" in run.stderr
    outputs = {
        "log": run.stderr,
        "telemetry": run.stdout,
        "list": said(capsys, monkeypatch, "dead", "list"),
        "list --json": said(capsys, monkeypatch, "dead", "list", "--json"),
        "groups": said(capsys, monkeypatch, "dead", "list", "--group"),
        "status": said(capsys, monkeypatch, "status", "--json"),
        "audit": said(capsys, monkeypatch, "audit", "--json"),
    }
    services = connect(Settings(database_url=database_url))
    store = services.store
    letters = store.dead_letters.read(store.dead_letters.select())
    assert {one.flow for one in letters} == set(canary_app.app.flows)
    for one in letters:
        outputs[f"show {one.flow}"] = said(capsys, monkeypatch, "dead", "show", one.letter)
        outputs[f"show --json {one.flow}"] = said(capsys, monkeypatch, "dead", "show", one.letter, "--json")
        shown = said(capsys, monkeypatch, "dead", "show", one.letter, "--body")
        assert shown.count(SECRET) >= 3, "body and headers are shown when asked for"
    outputs["metrics"] = Metrics(services).text().decode()
    password = urlsplit(database_url).password or SECRET
    assert {what for what, text in outputs.items() if SECRET in text or password in text} == set()
    (parse, _) = [one for one in letters if one.flow == "canary.parse"]
    assert f"invalid literal for int() with base 10: '{SECRET}'" in parse.stack
    services.close()


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("SELECT * FROM orders", "no such table: orders"),
        ("INSERT INTO cards (number, totl) VALUES (1, 2)", "table cards has no column named totl"),
        ("SELECT totl FROM cards", "no such column: totl"),
        (f"SELEC '{SECRET}'", "SQLITE_ERROR"),
    ],
)
def test_an_error_of_sqlite_names_what_table_or_column_is_missing(sqlite_url: str, statement: str, shown: str) -> None:
    services = connect(Settings(database_url=sqlite_url))
    store: Any = services.store
    with store.dialect.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE cards (number INTEGER)")
        with pytest.raises(OperationalError) as raised:
            connection.exec_driver_sql(statement)
    services.close()
    assert told(raised.value) == f"OperationalError: {shown}"
