"""Proof that an app's own flows survive crashes: run once per point at which a worker can die, and compare the ends."""

import linecache
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import sysconfig
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from sqlalchemy import Engine, event

import flowkit
from flowkit.app import App
from flowkit.errors import ConfigError, FlowKitError
from flowkit.testing.end import Columns, Difference, End, differences, files, read, take_down, varying, without
from flowkit.testing.harness import Harness

POINTS = 1000
FIRST_STEP_SECONDS, LONGEST_STEP_SECONDS = 1.0, 86_400.0
STEPS = 200
"""So often time passes until nothing is pending: some months."""
VISITS = 3
"""Each line of the user's code is a point the first times that it runs; a loop has no more."""
OTHERS = (
    str(Path(flowkit.__file__).parent),
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)
"""Where code is that is not the user's."""
ADVICE = (
    "an effect outside of the transaction is there again when its message runs again: make it through the session, "
    "Outbox or Objects, or let whoever has the effect recognize the message's id"
)

Scenario = Callable[[Harness], object]


class Escape(NamedTuple):
    """A crash that was not survived: where the worker was killed, and what is different at the end."""

    point: str
    differences: list[Difference]


class Proof(NamedTuple):
    """What was proven. `possible` counts the points of an undisturbed run, `killed` those where a worker was killed.

    `ignored` names columns that differ without any crash, such as times and random ids.
    """

    possible: int
    killed: int
    ignored: list[str]
    escapes: list[Escape]

    def __str__(self) -> str:
        said = [
            f"killed at {self.killed} of {self.possible} points; {len(self.escapes)} of these crashes change the end"
        ]
        by_effect: dict[str, list[str]] = {}
        for escape in self.escapes:
            by_effect.setdefault("\n  ".join(map(str, escape.differences)), []).append(escape.point)
        for effect, points in by_effect.items():
            others = f" and at {len(points) - 1} other points" if len(points) > 1 else ""
            said += [f"  {effect}", f"    when killed {points[0]}{others}"]
        if self.ignored:
            said.append(f"not compared, because it differs without a crash: {', '.join(self.ignored)}")
        return "\n".join([*said, ADVICE] if self.escapes else said)


class CrashUnsafe(FlowKitError, AssertionError):
    """A crash changes what the flows do. `proof` says where and what."""

    def __init__(self, app: str, proof: Proof) -> None:
        super().__init__(f"app {app} is not safe from crashes: {proof}")
        self.proof = proof


class ScenarioFailed(FlowKitError):
    """What the scenario or the flows raised, and where."""


class Unrepeatable(FlowKitError):
    """The scenario ends differently without any crash, or does nothing: nothing can be said about crashes."""


def crash_everywhere(
    app: App,
    scenario: Scenario,
    *,
    directory: Path | str | None = None,
    observe: Callable[[], object] | None = None,
    points: int = POINTS,
) -> Proof:
    """Prove that the flows of an app do the same whenever their worker is killed. Blocks; POSIX only.

    `scenario(harness)` prepares what the flows need and publishes what they work on; each run calls it, in a process
    and on a SQLite database of its own. Then the worker is killed by SIGKILL at one point, before a line of the user's
    code or a statement to the database, and another one goes on until nothing is pending. The end has to be that of the
    undisturbed run: the rows of all tables, what was sent and kept, the dead letters and the ledger; the files in
    `directory`, which is empty at first and emptied for each run; and what `observe()` returns, for other effects: it
    is called in this process, so it sees nothing that was in a worker's memory.

    Numbers that the database gives as primary keys may be others. With more than `points` points, so many are taken
    evenly. Raises CrashUnsafe naming each effect that escaped its transaction, Unrepeatable if two undisturbed runs end
    differently, ScenarioFailed if one fails, and ConfigError for a directory that is not empty.
    """
    with tempfile.TemporaryDirectory(prefix="flowkit-crash-") as home:
        prover = _Prover(app, scenario, Path(home), None if directory is None else Path(directory), observe)
        reference, labels, numbers = prover.undisturbed()
        again, *_ = prover.undisturbed()
        if not any(row["accepted"] for row in reference["ledger"]):
            raise Unrepeatable("the scenario publishes nothing that a flow takes; publish to a channel with a flow")
        ignored = varying(reference, again)
        expected = without(reference, ignored)
        if found := differences(expected, without(again, ignored)):
            raise Unrepeatable(
                "two runs without a crash ended differently, so that nothing can be said about crashes; does the "
                f"scenario depend on what an earlier run left? {'; '.join(map(str, found))}"
            )
        killed, escapes = 0, []
        for number in range(1, len(labels) + 1, -(-len(labels) // points)):
            end, point = prover.crashed(number)
            killed += point is not None
            end = without(end, ignored)
            if differences(without(expected, numbers), without(end, numbers)):
                escapes.append(Escape(point or "nowhere", differences(expected, end)))
        prover.clear()
    proof = Proof(len(labels), killed, sorted(f"{column} of {place}" for place, column in ignored), escapes)
    if escapes:
        raise CrashUnsafe(app.name, proof)
    return proof


class _Prover:
    """Runs a scenario in processes of its own."""

    def __init__(
        self,
        app: App,
        scenario: Scenario,
        home: Path,
        directory: Path | None,
        observe: Callable[[], object] | None,
    ) -> None:
        self._app = app
        self._scenario = scenario
        self._home = home
        self._directory = directory
        self._observe = observe
        self._context = multiprocessing.get_context("fork")
        if directory is not None and directory.is_dir() and any(directory.iterdir()):
            raise ConfigError(f"directory {directory} is not empty; name one that may be emptied for each run")

    def undisturbed(self) -> tuple[End, list[str], Columns]:
        """The end without a crash, every point that was passed, and the columns of numbers given by the database."""
        self.clear()
        labels, end, numbers = self._process(self._first, 0)
        return self._observed(end), labels, numbers

    def crashed(self, number: int) -> tuple[End, str | None]:
        """The end after a crash at a point, and what was to come there; None if this run did not come so far."""
        self.clear()
        point = self._process(self._first, number)
        if not isinstance(point, str):
            return self._observed(point[1]), None
        return self._observed(self._process(self._second)), point

    def clear(self) -> None:
        """Remove what the last run left."""
        for place in (self._home, self._directory):
            if place is not None:
                place.mkdir(parents=True, exist_ok=True)
                for entry in place.iterdir():
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def _observed(self, end: End) -> End:
        if self._directory is not None:
            end["files"] = files(self._directory)
        if self._observe is not None:
            end["observe()"] = [{"value": repr(self._observe())}]
        return end

    def _process(self, role: Callable[..., None], *arguments: object) -> Any:
        """What a process said last before it ended, or was killed. Raises ScenarioFailed."""
        told, tell = self._context.Pipe(duplex=False)
        process = self._context.Process(target=self._run, args=(tell, role, *arguments))
        with warnings.catch_warnings():
            # From Python 3.12 on, where the program has threads: the child uses none of their locks.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        tell.close()
        said: Any = None
        with closing(told):
            try:
                while True:
                    said = told.recv()
            except EOFError:
                process.join()
        if isinstance(said, BaseException):
            raise said
        if said is None:
            raise ScenarioFailed(f"the process of the scenario ended with {process.exitcode} before it was done")
        return said

    def _run(self, tell: Connection, role: Callable[..., None], *arguments: object) -> None:
        logging.getLogger("flowkit").setLevel(logging.ERROR)  # that workers are gone is no news here
        try:
            role(tell, *arguments)
        except BaseException as error:
            tell.send(_failed(error))
        finally:
            tell.close()
            os._exit(0)  # nothing that this program registered for its own end

    def _open(self) -> Harness:
        return Harness(self._app, f"sqlite:///{self._home / 'flowkit.db'}")

    def _first(self, tell: Connection, number: int) -> None:
        """Publish, then work until this point; 0 is none."""
        points = _Points(tell, number)
        points.watch()
        with self._open() as harness:
            take_down(harness)
            self._scenario(harness)
            points.armed = True
            _drain(harness)
            points.armed = False
            tell.send((points.labels, *read(harness)))

    def _second(self, tell: Connection) -> None:
        """Take over what is left, as another worker does."""
        with self._open() as harness:
            _drain(harness)
            tell.send(read(harness)[0])


class _Points:
    """The points at which the worker of this process can be killed."""

    def __init__(self, tell: Connection, number: int) -> None:
        self._tell = tell
        self._number = number
        self._visits: Counter[tuple[str, int]] = Counter()
        self.labels: list[str] = []
        self.armed = False

    def watch(self) -> None:
        """From now on, pass a point before each statement and each line of the user's code."""
        event.listen(
            Engine,
            "connect",
            lambda connection, _: connection.set_trace_callback(lambda statement: self._pass(_statement(statement))),
        )
        threading.settrace(self._enter)
        sys.settrace(self._enter)

    def _pass(self, label: str) -> None:
        if not self.armed:
            return
        self.labels.append(label)
        if len(self.labels) == self._number:
            self._tell.send(label)
            os.kill(os.getpid(), signal.SIGKILL)

    def _enter(self, frame: FrameType, kind: str, _: object) -> Any:
        file = frame.f_code.co_filename
        return None if file.startswith(("<", *OTHERS)) else self._line

    def _line(self, frame: FrameType, kind: str, _: object) -> Any:
        if kind == "line" and self.armed:
            file, line = frame.f_code.co_filename, frame.f_lineno
            self._visits[file, line] += 1
            if self._visits[file, line] <= VISITS:
                self._pass(f"before {Path(file).name}:{line} `{linecache.getline(file, line).strip()}`")
        return self._line


def _statement(text: str) -> str:
    return f"before the statement {' '.join(text.split())[:60]}"


def _drain(harness: Harness) -> None:
    """Work, and let time pass, until nothing is pending."""
    step = FIRST_STEP_SECONDS
    harness.until_quiet()
    for _ in range(STEPS):
        if not any(balance.pending for balance in harness.balances().values()):
            return
        harness.advance(step)
        step = min(step * 2, LONGEST_STEP_SECONDS)
    raise RuntimeError(f"app {harness.app.name}: messages are pending for ever; see them with harness.balances()")


def _failed(error: BaseException) -> ScenarioFailed:
    """An error as it can pass between processes, with where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" (at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})" if trace is not None else ""
    return ScenarioFailed(f"{type(error).__name__}: {error}{where}")
