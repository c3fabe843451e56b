"""Threats: what must not get in, and what must not get out. TLS and guests have tests beside what guards them."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import flowkit_connectors
import pytest
from sqlalchemy.orm import Session

import flowkit
from flowkit import App, DefinitionError
from flowkit.engine.worker import Worker
from flowkit.services import connect
from flowkit.settings import Settings
from tests.services.rabbitmq import RabbitMQ
from tests.support import ROOT
from tests.support.shop import Effect, Order, new_app, once, running

MAKES_CODE = {"eval", "exec", "compile", "__import__"}
READS_CODE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}


def test_threat_code_in_data_has_nothing_that_would_run_it() -> None:
    """What reads data as code is not called; `shelve` is looked for in handlers of others, and is not called either."""
    found = []
    sources = [path for package in (flowkit, flowkit_connectors) for path in Path(package.__path__[0]).rglob("*.py")]
    assert len(sources) > 50
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in MAKES_CODE or called.split(".")[0] in READS_CODE:
                    found.append(f"{path}:{node.lineno}: {called}")
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in READS_CODE:
                found.append(f"{path}:{node.lineno}: from {node.module}")
    assert found == []


NAMES = [
    "o'; DROP TABLE flowkit_messages; --",
    '"quoted"',
    "100%s %(name)s {0} :name ? $1",
    "back\\slash `tick` ../../etc",
    "*.#",
    "ünïcode 名前",
]


@pytest.mark.parametrize("name", NAMES)
def test_threat_names_of_channels_and_flows_are_never_part_of_a_statement(database_url: str, name: str) -> None:
    app = new_app()
    orders = app.channel(name, Order)

    @app.flow(orders, name=name)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    with running(app, database_url) as harness:
        harness.publish(orders, Order(name=name), id=name, headers={name: name}, key=name)
        harness.until_quiet()
        once(harness, name)
        assert harness.balances()[f"shop.{name}"].applied == 1


@pytest.mark.parametrize("name", [*NAMES, "dots.too", ""])
def test_threat_names_of_apps_have_letters_digits_and_lines(name: str) -> None:
    with pytest.raises(DefinitionError, match="only letters, digits"):
        App(name)


@pytest.mark.parametrize("name", NAMES)
def test_threat_names_of_flows_are_names_of_queues(sqlite_url: str, rabbitmq_url: str, name: str) -> None:
    """None of them is a pattern or an option to the broker."""
    app, seen = new_app(), list[str]()
    orders = app.channel("orders", Order)
    app.flow(orders, name=name)(lambda order: seen.append(order.name))
    app.flow(orders, name="other")(lambda order: None)
    services = connect(Settings(database_url=sqlite_url, broker_url=rabbitmq_url))
    worker = Worker(app, services)
    app.publish(orders, Order(name="a"))
    while worker.step() or services.store.ledger.unfinished(list(app.flows)):
        pass
    worker.close()
    assert seen == ["a"]
    assert services.transport.depths(list(app.flows)) == {f"shop.{name}": 0, "shop.other": 0}
    app.close()


@pytest.mark.parametrize("text", ["a\r\nb: c", "a\nb", "a\x00b", "a\x1bb", "\x7f"])
@pytest.mark.parametrize("where", ["id", "key", "header", "header's name"])
def test_threat_control_characters_are_refused_at_the_send(sqlite_url: str, where: str, text: str) -> None:
    app = new_app()
    orders = app.channel("orders", Order)
    app.flow(orders, name="accept")(lambda order: None)
    options = {"header": {"headers": {"a": text}}, "header's name": {"headers": {text: "a"}}}
    with running(app, sqlite_url) as harness:
        with pytest.raises(Exception, match="control characters"):
            harness.publish(orders, Order(name="a"), **options.get(where, {where: text}))
        assert harness.balances().get("shop.accept", (0,))[0] == 0


# ------------------------------------------------------------ secrets

APP = """
from flowkit import App, RetryPolicy

app = App("canary")
numbers = app.channel("numbers", int)

@app.flow(numbers, retry=RetryPolicy(attempts=2, first="10ms", jitter=0))
def fail(number: int) -> None:
    raise ValueError("as it is shown in logs and dead letters")
"""


class Terminal(NamedTuple):
    """Runs commands with all that they log."""

    folder: Path
    urls: dict[str, str]

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a command."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLOWKIT_")}
        return subprocess.Popen(
            [sys.executable, "-m", "flowkit", *arguments],
            cwd=self.folder,
            env={**environment, "PYTHONPATH": str(ROOT), "FLOWKIT_LOG_LEVEL": "DEBUG", **self.urls},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str) -> str:
        """What a command says, whatever its exit code is."""
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=60)
        return f"{out}{err}"


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    (tmp_path / "app.py").write_text(APP)
    yield Terminal(tmp_path, {})


COMMANDS = [
    ["db", "upgrade"],
    ["check", "app.py"],
    ["describe", "app.py", "--json"],
    ["send", "app.py", "numbers", "1"],
    ["run", "app.py", "--until-idle"],
    ["status", "--json"],
    ["audit", "--json"],
    ["dead", "list", "--json"],
    ["dead", "replay", "--all", "--yes"],
]


def password(url: str) -> str:
    """The password of a URL, as it is there and as it is meant."""
    return unquote(urlsplit(url).password or "")


def test_threat_secrets_are_in_no_output_of_what_works(
    terminal: Terminal, postgresql_url: str, rabbitmq_url: str
) -> None:
    terminal.urls.update(FLOWKIT_DATABASE_URL=postgresql_url, FLOWKIT_BROKER_URL=rabbitmq_url)
    said = [terminal(*command) for command in COMMANDS]
    assert "ValueError: as it is shown" in said[4], "the flow ran"
    assert "fail" in said[7], "there is a dead letter"
    for secret in (password(postgresql_url), password(rabbitmq_url)):
        assert len(secret) > 8
        assert [command for command, text in zip(COMMANDS, said, strict=True) if secret in text] == []


CANARY = "canary-3f9a"


@pytest.mark.parametrize(
    "urls",
    [
        {"FLOWKIT_DATABASE_URL": f"postgresql://user:{CANARY}@127.0.0.1:1/db"},
        {"FLOWKIT_DATABASE_URL": f"postgresql://user@127.0.0.1:1/db?password={CANARY}"},
        {"FLOWKIT_DATABASE_URL": f"mysql://user:{CANARY}@127.0.0.1/db"},
        {"FLOWKIT_DATABASE_URL": f"postgresql://user:{CANARY}@[::1/db"},
        {"FLOWKIT_DATABASE_URL": f"postgresql://user:{CANARY}@host:port/db"},
        {"FLOWKIT_BROKER_URL": f"amqp://user:{CANARY}@127.0.0.1:1"},
        {"FLOWKIT_BROKER_URL": f"amqp://user:{CANARY}@[::1"},
        {"FLOWKIT_BROKER_URL": f"amqp://user:{CANARY}@ho\u2100st"},
        {"FLOWKIT_DRAIN_URL": f"amqp://user:{CANARY}@127.0.0.1:1"},
        {"FLOWKIT_BROKER_URL": "amqp://127.0.0.1:1", "FLOWKIT_BROKER_MANAGEMENT_URL": f"ftp://user:{CANARY}@127.0.0.1"},
    ],
    ids=["away", "parameter", "unknown", "unreadable", "port", "broker", "no-broker", "no-host", "drain", "management"],
)
def test_threat_secrets_are_in_no_output_of_what_fails(terminal: Terminal, urls: dict[str, str]) -> None:
    terminal.urls.update(urls)
    said = [terminal("check", "app.py"), terminal("status")]
    assert "FLOWKIT_" in said[0], "the setting is named"
    assert not any(CANARY in text for text in said)


@pytest.mark.parametrize("setting", ["DATABASE", "BROKER"])
def test_threat_secrets_are_in_no_log_of_a_worker_that_waits(terminal: Terminal, setting: str) -> None:
    """A worker starts again and again while a service is away."""
    scheme = "postgresql" if setting == "DATABASE" else "amqp"
    terminal.urls[f"FLOWKIT_{setting}_URL"] = f"{scheme}://user:{CANARY}@127.0.0.1:1/db"
    with terminal.start("run", "app.py") as process:
        assert process.stderr is not None
        said = ""
        while "127.0.0.1:1" not in said and (line := process.stderr.readline()):
            said += line
        process.terminate()
        said += process.stderr.read()
    assert "127.0.0.1:1" in said
    assert CANARY not in said


def test_threat_wrong_passwords_are_in_no_output(
    terminal: Terminal, postgresql_url: str, rabbitmq_node: RabbitMQ, rabbitmq_url: str
) -> None:
    wrong = postgresql_url.replace(password(postgresql_url), CANARY)
    terminal.urls.update(FLOWKIT_DATABASE_URL=wrong)
    assert CANARY not in (said := terminal("status"))
    assert "FLOWKIT_DATABASE_URL" in said
    terminal.urls.update(FLOWKIT_DATABASE_URL="sqlite:///app.db", FLOWKIT_BROKER_URL=rabbitmq_node.url(password=CANARY))
    assert CANARY not in (said := terminal("check", "app.py"))
    assert "FLOWKIT_BROKER_URL" in said


def test_threat_secrets_are_in_no_text_of_the_settings() -> None:
    """Debuggers, collectors of errors and failing tests show what objects say of themselves."""
    url = f"amqp://user:{CANARY}@host"
    settings = Settings(database_url=url, broker_url=url, broker_management_url=url, drain_url=url)
    assert CANARY not in repr(settings)
    assert CANARY not in str(settings)
