"""Exporters: they come from the environment, and nothing is imported when telemetry is off."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import flowkit.services
import flowkit.testing.harness
from flowkit import RetryPolicy
from flowkit.telemetry import ambient, otel
from flowkit.telemetry.otel import OpenTelemetry
from flowkit.telemetry.port import OFF
from flowkit.testing import Harness
from tests.support import ROOT
from tests.support.shop import Order, new_app

# ------------------------------------------------------------ the command line


@pytest.fixture
def command(tmp_path: Path, sqlite_url: str) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    (tmp_path / "small.py").write_text(
        "from flowkit import App, Logger, RetryPolicy\n"
        "app = App('small')\n"
        "@app.flow(app.channel('words', str), retry=RetryPolicy(attempts=1))\n"
        "def read(word: str, log: Logger) -> None:\n"
        "    log.info('read %s', word)\n"
        "    if word.startswith('bad'):\n"
        "        raise ValueError('no such word')\n"
    )

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "FLOWKIT_"))}
        return subprocess.run(
            [sys.executable, "-m", "flowkit", *arguments],
            cwd=tmp_path,
            env={**clean, "FLOWKIT_DATABASE_URL": sqlite_url, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    yield run


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.processes
def test_exporters_come_from_the_environment(command: Run) -> None:
    command("send", "small.py", "words", "hello")
    ran = command(
        "run", "small.py", "--until-idle", OTEL_TRACES_EXPORTER="console", OTEL_METRICS_EXPORTER="console",
        FLOWKIT_LOG_FORMAT="json",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert '"name": "process words"' in ran.stdout
    assert "messaging.process.duration" in ran.stdout
    assert '"service.name": "small"' in ran.stdout
    lines = [json.loads(line) for line in ran.stderr.splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line["message"] == "read hello"]
    assert (line["level"], line["flow"], line["logger"]) == ("INFO", "small.read", "flowkit.flow.small.read")
    assert line["message_id"] == line["correlation_id"]
    assert f'"trace_id": "0x{line["trace_id"]}"' in ran.stdout
    assert f'"span_id": "0x{line["span_id"]}"' in ran.stdout


@pytest.mark.processes
def test_an_exporter_that_is_not_there_is_named(command: Run) -> None:
    ran = command("run", "small.py", OTEL_TRACES_EXPORTER="jaeger")
    assert ran.returncode == 2
    assert "OTEL_TRACES_EXPORTER is 'jaeger'" in ran.stderr
    assert "pip install opentelemetry-exporter-jaeger" in ran.stderr
    assert command("run", "small.py", FLOWKIT_LOG_FORMAT="xml").returncode == 2


@pytest.mark.processes
def test_json_logs_need_no_telemetry(command: Run) -> None:
    command("send", "small.py", "words", "bad\n\x1b[31m")
    command("send", "small.py", "words", "bad")
    ran = command("run", "small.py", "--until-idle", FLOWKIT_LOG_FORMAT="json", OTEL_SDK_DISABLED="true")
    lines = [json.loads(line) for line in ran.stderr.splitlines() if line.startswith("{")]
    assert any(line.get("flow") == "small.read" and "no such word" in line["message"] for line in lines)
    assert all("trace_id" not in line for line in lines)
    assert "\x1b" not in ran.stderr


def test_off_imports_nothing_and_adds_nothing(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from flowkit import App\n"
        "from flowkit.testing import Harness\n"
        "app = App('small')\n"
        "seen = []\n"
        "from flowkit import Message\n"
        "words = app.channel('words', str)\n"
        "@app.flow(words)\n"
        "def read(word: str, message: Message) -> None:\n"
        "    seen.append(dict(message.headers))\n"
        "with Harness(app) as harness:\n"
        "    harness.publish(words, 'hello')\n"
        "    harness.until_quiet()\n"
        "assert seen == [{}], seen\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)
    assert ambient("flowkit") is OFF or not ambient("flowkit").on


def test_a_collector_that_does_not_answer_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(InMemorySpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> Any:
            never.wait(60)

    never = threading.Event()
    monkeypatch.setattr(otel, "CLOSE_SECONDS", 0.1)
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(Deaf(), max_queue_size=100, max_export_batch_size=10))
    telemetry = OpenTelemetry(tracers, MeterProvider(shutdown_on_exit=False), "flowkit")
    monkeypatch.setattr(flowkit.testing.harness, "ambient", lambda system: telemetry)
    app = new_app()
    orders = app.channel("orders", Order)
    app.flow(orders, name="end", retry=RetryPolicy(attempts=1))(lambda order: None)
    with Harness(app) as harness:
        app.publish_many(orders, [Order(name=str(number)) for number in range(1000)])
        harness.until_quiet()
        assert harness.balances()["shop.end"].applied == 1000
    telemetry.close()
    never.set()
