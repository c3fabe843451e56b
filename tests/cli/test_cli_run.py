"""`flowkit run`: workers that die, signals, and the exit codes of a flow that stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.command_line import APP, Terminal
from tests.support.waiting import wait_until


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Running(NamedTuple):
    """A `flowkit run` that goes on."""

    process: subprocess.Popen[str]
    terminal: Terminal

    def workers(self, state: str = "ready") -> list[int]:
        return [pid for (pid,) in self.terminal.sql(f"SELECT pid FROM flowkit_workers WHERE state = '{state}'")]

    def effects(self) -> list[int]:
        return [id for (id,) in self.terminal.sql("SELECT id FROM effects ORDER BY id")]

    def end(self, seconds: float = 60) -> tuple[int, str]:
        """Wait for its end. Returns the exit code and what it said."""
        _, said = self.process.communicate(timeout=seconds)
        return self.process.returncode, said


@contextmanager
def running(flowkit: Terminal, *arguments: str) -> Iterator[Running]:
    process = subprocess.Popen(
        [sys.executable, "-m", "flowkit", "run", "shop.py", *arguments], stderr=subprocess.PIPE, text=True
    )
    try:
        yield Running(process, flowkit)
    finally:
        process.kill()
        process.communicate()


def publish(flowkit: Terminal, count: int, deed: str = "") -> None:
    lines = "\n".join(json.dumps({"id": number, "deed": deed}) for number in range(count))
    assert flowkit("send", "shop.py", "orders.received", stdin=lines.encode() + b"\n\n").code == 0


@pytest.mark.processes
def test_a_killed_worker_is_replaced_and_everything_takes_effect_once(flowkit: Terminal) -> None:
    publish(flowkit, 300, "sleep")
    with running(flowkit, "--workers", "2", "--until-idle") as run:
        wait_until(lambda: bool(run.workers()) and len(run.effects()) >= 20)
        os.kill(run.workers()[0], signal.SIGKILL)
        code, said = run.end()
    assert code == 0, said
    assert "died (SIGKILL)" in said
    assert run.effects() == list(range(300))
    assert run.workers() == []
    ledger = flowkit("audit", "--json")
    assert ledger.code == 0
    assert ledger.json["applied"] == 600


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_within_the_grace(flowkit: Terminal, number: signal.Signals) -> None:
    publish(flowkit, 5000, "sleep")
    with running(flowkit, "--workers", "2", "--grace", "20s") as run:
        wait_until(lambda: len(run.workers()) == 2 and run.effects())
        run.process.send_signal(number)
        began = time.monotonic()
        code, said = run.end()
    assert code == 0, said
    assert time.monotonic() - began < 20
    assert run.workers() == run.workers("draining") == []
    assert 0 < len(run.effects()) == len(set(run.effects())) < 5000
    assert flowkit("audit").code == 0
    assert flowkit.sql("SELECT count(*) FROM flowkit_messages WHERE worker IS NOT NULL") == [(0,)]


@pytest.mark.processes
def test_a_second_signal_ends_it_at_once(flowkit: Terminal) -> None:
    publish(flowkit, 1, "hang")
    with running(flowkit, "--grace", "10m") as run:
        wait_until((flowkit.folder / "hanging").exists)
        # Two of one number that wait at the same time are one signal.
        run.process.send_signal(signal.SIGINT)
        run.process.send_signal(signal.SIGTERM)
        code, said = run.end()
    assert (code, "killed at the second signal" in said) == (130, True), said
    assert flowkit("audit").code == 0


@pytest.mark.processes
def test_a_handler_that_hangs_past_the_grace_does_not_keep_it(flowkit: Terminal) -> None:
    publish(flowkit, 1, "hang")
    with running(flowkit, "--grace", "500ms") as run:
        wait_until((flowkit.folder / "hanging").exists)
        run.process.send_signal(signal.SIGTERM)
        run.end(30)
    assert flowkit("audit").code == 0
    assert flowkit.sql("SELECT count(*) FROM flowkit_messages") == [(1,)]


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_end_when_their_supervisor_is_killed(flowkit: Terminal) -> None:
    publish(flowkit, 1)
    with running(flowkit, "--workers", "2") as run:
        wait_until(lambda: len(run.workers()) == 2)
        pids = run.workers()
        run.process.kill()
        run.process.wait()
        wait_until(lambda: not any(alive(pid) for pid in pids), 30)
    assert run.workers() == [], "they left in order"


@pytest.mark.processes
def test_a_flow_that_stopped_is_the_exit_code(flowkit: Terminal) -> None:
    publish(flowkit, 1, "commit")
    with running(flowkit, "--until-idle") as run:
        code, said = run.end()
    assert code == 1, said
    assert "flow shop.accept is stopped" in said
    assert "Traceback" not in said


@pytest.mark.processes
def test_until_idle_says_what_it_waits_for(flowkit: Terminal) -> None:
    flowkit("send", "shop.py", "notes", "x", "--delay", "8s")
    with running(flowkit, "--until-idle", "--flows", "note, shop.done") as run:
        code, said = run.end()
    assert code == 0, said
    assert said.count("only delayed messages and retries are left; waiting for 1") == 1
    assert flowkit("audit", "--json").json["flows"]["shop.note"]["applied"] == 1


@pytest.mark.processes
@pytest.mark.parametrize("patch", ["gevent.monkey.patch_all", "eventlet.monkey_patch"])
@pytest.mark.parametrize("command", [["run", "shop.py", "--until-idle"], ["check", "shop.py"]], ids=["run", "check"])
def test_an_app_that_replaces_threads_is_refused_by_the_librarys_name(
    shop: Path, patch: str, command: list[str]
) -> None:
    library = patch.partition(".")[0]
    (shop / "shop.py").write_text(f"import {patch.rpartition('.')[0]}\n{patch}()\n{APP}")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "flowkit", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert f"lets {library} replace thread.start_new_thread" in done.stderr
