"""Proof that an app's flows survive crashes: run them once for each crash point, and compare the final states."""

import inspect
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from flowkit.app import App
from flowkit.errors import ConfigError, DefinitionError, FlowKitError
from flowkit.model.channel import Channel
from flowkit.services import open_store
from flowkit.settings import Settings
from flowkit.testing.end import Columns, Common, Difference, End, differences, files, observed, read, take_down, without
from flowkit.testing.harness import Harness
from flowkit.testing.outside import Outside
from flowkit.testing.points import Points, installed
from flowkit.testing.process import Process, ScenarioFailed, Unrepeatable
from flowkit.testing.scratch import Scratch

POINTS = 1000
WORK, TEMPORARY = "work", "tmp"
"""The folders of a run: its copy of the working directory, and its temporary files."""
FIRST_STEP_SECONDS, LONGEST_STEP_SECONDS = 1.0, 86_400.0
STEPS = 200
"""Most steps of virtual time until nothing is pending: some months."""
MEMORY = "/dev/shm"  # noqa: S108 - the runs get their own folder there
"""Folder of the databases, if it exists. A killed process loses no data there, although nothing is synced to disk."""
ADVICE = (
    "an effect outside of the transaction happens again when its message runs again: make it through the session, "
    "Outbox or Objects, or let the other system recognize the message's id"
)

Scenario = Callable[[Harness], object]


class Escape(NamedTuple):
    """A crash that changed the final state: the point where the worker was killed, and the differences."""

    point: str
    differences: list[Difference]


class Proof(NamedTuple):
    """The result of a proof. `possible`: crash points of an undisturbed run. `killed`: those where a worker was killed.

    `ignored`: columns that are not compared, because they differ without a crash, such as times and random ids.
    `masked`: texts that are compared without their numbers or words, because these differ without a crash. `unwatched`:
    effects elsewhere, which only `observe` can compare. `escapes`: the crashes that changed the final state.
    """

    possible: int
    killed: int
    ignored: list[str]
    masked: list[str]
    escapes: list[Escape]
    unwatched: list[str]

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
        if self.masked:
            said.append(f"compared without these, because they differ without a crash: {', '.join(self.masked)}")
        if self.unwatched:
            said.append(f"not watched, but for what observe() returns: {', '.join(self.unwatched)}")
        return "\n".join([*said, ADVICE] if self.escapes else said)


class CrashUnsafe(FlowKitError, AssertionError):
    """A crash changes the effects of the flows. `proof` has the crash points and the differences."""

    def __init__(self, app: str, proof: Proof) -> None:
        super().__init__(f"app {app} is not safe from crashes: {proof}")
        self.proof = proof


class Unwatched(Unrepeatable):
    """A flow tried to have an effect that cannot be compared. The effect was prevented."""


def crash_everywhere(
    app: App,
    scenario: Scenario,
    *,
    directory: Path | str | None = None,
    observe: Callable[[], object] | None = None,
    points: int = POINTS,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Proof:
    """Prove that an app's flows have the same effects whenever their worker is killed. Blocks; POSIX only.

    `scenario(harness)` prepares data and publishes messages. Each run calls it, in its own process and on its own
    SQLite database. The flows run in another process: in `harness.until_quiet()`, in `harness.advance(…)`, and after
    the scenario until nothing is pending. Each run kills that process by SIGKILL at one crash point, which is before a
    line of the user's code or before a statement to the database; a new process continues.

    The final state has to equal that of an undisturbed run. It consists of the rows of all tables, the sent messages,
    the objects, the replies, the dead letters and the ledger; of the files in `directory`, which has to be empty and is
    emptied for each run; and of the value of `observe()`, for other effects. `observe` is called in this process, so it
    sees nothing of a worker's memory. Scenario and flows work in a copy of the working directory; its files are
    compared too, and the real files stay unchanged. Without `observe`, a flow is stopped before it writes elsewhere,
    connects or starts a program.

    Primary keys that the database generates may differ. If there are more than `points` crash points, that many are
    taken at equal distances. `progress(done, total)` is called after each point. Raises CrashUnsafe with each effect
    that escaped its transaction, Unrepeatable if two undisturbed runs end differently, Unwatched if a flow has an
    effect elsewhere, ScenarioFailed if the scenario or a flow fails, ConfigError for a directory that is not empty, and
    DefinitionError for a scenario or observe() that cannot be called.
    """
    _callable("scenario", scenario, "harness")
    if observe is not None:
        _callable("observe", observe)
    memory = MEMORY if os.access(MEMORY, os.W_OK) else None
    with ExitStack() as last:
        home = Path(last.enter_context(tempfile.TemporaryDirectory(prefix="flowkit-crash-", dir=memory)))
        prover = _Prover(app, scenario, home, None if directory is None else Path(directory), observe)
        last.callback(prover.clear)
        prover.prepare()
        reference, again = prover.run(), prover.run()
        if not any(row["accepted"] for row in reference.end["ledger"]):
            raise Unrepeatable("the scenario publishes nothing that a flow takes; publish to a channel with a flow")
        common = Common(reference.end, again.end)
        expected = common.of(reference.end)
        if common.incomparable:
            raise Unrepeatable(
                f"all of {', '.join(common.incomparable)} differs between two runs without a crash, so it cannot be "
                "compared; leave it out of directory= and observe=, or let observe= return a value that does not "
                "vary, such as the number of writes"
            )
        if found := differences(expected, common.of(again.end)):
            raise Unrepeatable(
                "two runs without a crash ended differently, so crashes cannot be judged; does the "
                f"scenario depend on what an earlier run left? {'; '.join(map(str, found))}"
            )
        killed, escapes = 0, []
        numbers = range(1, len(reference.labels) + 1, -(-len(reference.labels) // points))
        for done, number in enumerate(numbers, 1):
            run = prover.run(number)
            killed += run.point is not None
            end = common.of(run.end)
            if differences(without(expected, reference.keys), without(end, reference.keys)):
                escapes.append(Escape(run.point or "nowhere", differences(expected, end)))
            progress(done, len(numbers))
    proof = Proof(len(reference.labels), killed, common.ignored, common.masked, escapes, reference.unwatched)
    if escapes:
        raise CrashUnsafe(app.name, proof)
    return proof


class _Run(NamedTuple):
    """The result of a run: its final state, the columns of generated numbers, the labels of its crash points, the
    effects elsewhere, and the point where a worker was killed; None if the run did not reach it."""

    end: End
    keys: Columns
    labels: list[str]
    unwatched: list[str]
    point: str | None


class _Prover:
    """Runs a scenario and its flows in separate processes."""

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
        self._url = f"sqlite:///{home / 'flowkit.db'}"
        self._scratch = Scratch(home / WORK, directory)
        if directory is not None and directory.is_dir() and any(directory.iterdir()):
            raise ConfigError(f"directory {directory} is not empty; name one that may be emptied for each run")

    def prepare(self) -> None:
        """Load the modules that each process needs: processes are forked from this one."""
        self.clear()
        open_store(Settings(database_url=self._url, broker_url=""), check=False).close()

    def run(self, number: int = 0) -> _Run:
        """Run the scenario, and kill its worker at the crash point `number`, from 1; 0: do not. Blocks. Raises
        ScenarioFailed and Unrepeatable."""
        self.clear()
        labels: list[str] = []
        unwatched: list[str] = []
        point: str | None = None
        worker: Process | None = None
        with ExitStack() as processes:
            scenario = processes.enter_context(Process("scenario", self._play))
            try:
                while isinstance(said := scenario.hear(), float):
                    if worker is None:
                        worker = processes.enter_context(Process("flows", self._work, 0 if point else number))
                    worker.say(said)
                    passed = worker.hear()
                    if isinstance(passed, str):
                        worker.end()
                        point, worker = passed, None
                    else:
                        labels, unwatched = passed
                    scenario.say(worker is not None)
                if worker is not None:
                    worker.say(None)
                    worker.end()
                scenario.end()
            except ScenarioFailed as failed:
                raise ScenarioFailed(f"after a worker was killed {point}: {failed}") if point else failed from None
        end, keys = said
        end["files"] = [*(files(self._directory) if self._directory is not None else ()), *self._scratch.written()]
        if self._observe is not None:
            end["observe()"] = list(observed(self._observe()))
        return _Run(end, keys, labels, unwatched, point)

    def clear(self) -> None:
        """Remove the files of the last run, and restore the copy of the working directory."""
        for place in (self._home, self._directory):
            if place is not None:
                place.mkdir(parents=True, exist_ok=True)
                for entry in place.iterdir():
                    if entry != self._scratch.path:
                        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        (self._home / TEMPORARY).mkdir()
        self._scratch.restore()

    def _settle(self) -> None:
        """In a forked process, work in the copy of the working directory, and leave no files elsewhere."""
        os.chdir(self._scratch.path)
        tempfile.tempdir = os.environ["TMPDIR"] = str(self._home / TEMPORARY)
        sys.dont_write_bytecode = True

    def _play(self, pipe: Connection) -> None:
        """Run the scenario's process: publish, let time pass until nothing is pending, and send the final state."""
        self._settle()
        with _Remote(self._app, self._url, pipe) as harness:
            take_down(harness)
            self._scenario(harness)
            _drain(harness)
            if harness.outcomes:
                raise Unrepeatable(
                    f"the scenario itself runs flow {harness.outcomes[0][0]}, where no worker can be killed; let "
                    "harness.until_quiet() and harness.advance(…) run the flows"
                )
            pipe.send(read(harness))

    def _work(self, pipe: Connection, number: int) -> None:
        """Run the flows' process: for each time that the pipe sends, work until nothing is due."""
        self._settle()
        points = Points(pipe, number, installed(self._app))
        points.watch()
        unwatched: dict[str, None] = {}
        inside = [self._home, *([] if self._directory is None else [self._directory])]
        outside = Outside(inside, lambda what: self._note(what, unwatched, pipe))
        outside.watch()
        with Harness(self._app, self._url) as harness:
            while (now := pipe.recv()) is not None:
                harness.clock.advance(now - harness.clock.now())
                points.armed = outside.armed = True
                harness.until_quiet()
                points.armed = outside.armed = False
                pipe.send((points.labels, list(unwatched)))

    def _note(self, what: str, unwatched: dict[str, None], pipe: Connection) -> None:
        """Note an effect elsewhere before it happens. Without `observe`, end the process first."""
        if self._observe is not None:
            unwatched[what] = None
            return
        pipe.send(
            Unwatched(
                f"a flow was stopped before an effect that is not compared: {what}; let it write below the "
                "working directory or directory=, or name observe=, a function that returns its effects"
            )
        )
        os._exit(0)


class _Remote(Harness):
    """The harness of a scenario: its flows run in another process, and in a new one after that is killed."""

    def __init__(self, app: App, database_url: str, pipe: Connection) -> None:
        super().__init__(app, database_url)
        self._pipe = pipe

    def until_quiet(self) -> None:
        while not self._quiet():
            self.clock.advance(self.services.settings.lease + 1)  # then the leases of the killed worker have expired

    def sent(self, channel: Channel[Any] | str) -> list[Any]:
        raise DefinitionError(
            "a scenario of crash_everywhere cannot call sent(), because a killed worker cannot answer; read the "
            "database with harness.session(), or test this elsewhere"
        )

    def _quiet(self) -> bool:
        """Let the flows work. Returns False if their process was killed. Blocks."""
        self._pipe.send(self.clock.now())
        return bool(self._pipe.recv())


def _drain(harness: Harness) -> None:
    """Work, and let virtual time pass, until nothing is pending. Raises RuntimeError after STEPS steps."""
    step = FIRST_STEP_SECONDS
    harness.until_quiet()
    for _ in range(STEPS):
        if not any(balance.pending for balance in harness.balances().values()):
            return
        harness.advance(step)
        step = min(step * 2, LONGEST_STEP_SECONDS)
    raise RuntimeError(f"app {harness.app.name}: messages stay pending; see them with harness.balances()")


def _callable(role: str, function: Callable[..., object], *parameters: str) -> None:
    """Raise DefinitionError if a function cannot be called with these parameters, or if a call would not run it."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    name = getattr(function, "__name__", role)
    where = f" at {Path(code.co_filename).name}:{code.co_firstlineno}" if code else ""
    wrong = ""
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        wrong = "is async or has a yield, so that calling it does not run it"
    else:
        try:
            inspect.signature(function).bind(*parameters)
        except TypeError as error:
            wrong = f"cannot be called with {', '.join(parameters) or 'no argument'}: {error}"
        except ValueError:
            return  # it is not written in Python, and has no signature
    if wrong:
        raise DefinitionError(f"{role} {name}{where} {wrong}; write def {name}({', '.join(parameters)})")
