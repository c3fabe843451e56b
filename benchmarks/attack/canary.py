"""Searches all output for a secret that is in bodies, SQL parameters, headers, paths and the database URL."""

import json
import os
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import MetaData

from benchmarks.attack.app import Base
from benchmarks.attack.client import ask
from benchmarks.attack.keys import APP
from benchmarks.attack.verdict import Verdict
from flowkit.host.supervisor import COMMAND
from flowkit.services import connect
from flowkit.settings import Settings
from flowkit.sla.testbed import HOST, wait_until
from tests.services import free_port
from tests.services.postgresql import PostgreSQL
from tests.support import canary_app
from tests.support.shop import Base as Shop

SECRET = "4111-canary-3f9a"
ROOT = Path(__file__).parent.parent.parent
TELEMETRY = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "console", "FLOWKIT_LOG_LEVEL": "DEBUG"}


def said(settings: Mapping[str, str], *words: str) -> str:
    """The text that a command of FlowKit prints, on both outputs."""
    done = subprocess.run(
        [*COMMAND, *words], env={**os.environ, "PYTHONPATH": str(ROOT), **settings}, cwd=ROOT, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def _prepare(url: str, tables: MetaData) -> Any:
    """Make FlowKit's tables and the app's. Returns the services."""
    said({"FLOWKIT_DATABASE_URL": url, "FLOWKIT_BROKER_URL": ""}, "db", "upgrade")
    services: Any = connect(Settings(database_url=url, broker_url=""))
    tables.create_all(services.store.dialect.engine)
    return services


def _holders(outputs: Mapping[str, str], url: str) -> str:
    """Which outputs have the secret, or the password of the database."""
    secrets = (SECRET, str(urlsplit(url).password))
    return ", ".join(sorted(what for what, text in outputs.items() if any(one in text for one in secrets)))


def _failures(url: str) -> Verdict:
    """Handlers that fail in each way that may repeat the data of their message."""
    settings = {"FLOWKIT_DATABASE_URL": url, "FLOWKIT_BROKER_URL": ""}
    canary_app.app.connect(_prepare(url, Shop.metadata))
    canary_app.app.publish(canary_app.orders, {"name": SECRET}, headers={"authorization": f"Bearer {SECRET}"})
    canary_app.app.close()
    outputs = {
        "log, traces and metrics": said(
            {**settings, **TELEMETRY}, "run", "tests.support.canary_app:app", "--until-idle"
        )
    }
    listed = said(settings, "dead", "list", "--json")
    outputs["dead list --json"] = listed
    for words in ("dead list", "dead list --group", "status", "status --json", "audit --json", "subscriptions list"):
        outputs[words] = said(settings, *words.split())
    letters = [one["letter"] for one in json.loads(listed[: listed.rindex("]") + 1])]
    for letter in letters:
        outputs[f"dead show {letter}"] = said(settings, "dead", "show", letter)
    shown = said(settings, "dead", "show", letters[0], "--body")
    told = _holders(outputs, url)
    seen = f"{len(letters)} dead letters, {len(outputs)} outputs; it is in {told or 'none'}"
    tried = f"{len(canary_app.app.flows)} handlers that fail with it; a password in the URL of the database"
    return Verdict("a secret in messages", tried, seen, not told and SECRET in shown and len(letters) > 10)


def _requests(url: str) -> Verdict:
    """Requests with the secret in their path, query, headers and content: taken, refused and unknown."""
    http, admin = free_port(), free_port()
    _prepare(url, Base.metadata).close()
    environment = {"FLOWKIT_DATABASE_URL": url, "FLOWKIT_BROKER_URL": "", **TELEMETRY}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [*COMMAND, "run", APP, "--http", f"{HOST}:{http}", "--admin", f"{HOST}:{admin}"],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, cwd=ROOT, stdout=output, stderr=output,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_until(lambda: _ready(http), "the instance is not ready")
            headers = {"idempotency-key": "one", "authorization": f"Bearer {SECRET}", "cookie": SECRET}
            for path in ("/places", "/accounts", "/imports", f"/{SECRET}", f"/flowkit/messages/x?token={SECRET}"):
                for content in ({"name": SECRET}, {"nobody": SECRET}, [SECRET]):
                    ask(http, "POST", path, content, headers)
                    ask(http, "GET", path, None, headers)
            outputs = {path: _get(admin, path) for path in ("/metrics", "/scale", "/readyz?verbose")}
        finally:
            process.terminate()
            process.wait(60)
        output.seek(0)
        outputs["log, traces and metrics"] = output.read()
    told = _holders(outputs, url)
    tried = "in path, query, headers and content of 30 requests; a password in the URL of the database"
    return Verdict(
        "a secret in requests",
        tried,
        f"{len(outputs)} outputs; it is in {told or 'none'}",
        not told and all(outputs.values()),
    )


def _ready(port: int) -> bool:
    try:
        return ask(port, "GET", "/readyz", None, {}).status == 200
    except OSError:
        return False


def _get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=30) as answer:
        return str(answer.read().decode())


def attacks() -> Iterator[Verdict]:
    """Look for the secret in every output of a worker on PostgreSQL, whose password it is, too."""
    with closing(PostgreSQL()) as database:
        database.start()
        yield _failures(database.create_database("failures"))
        yield _requests(database.create_database("requests"))
