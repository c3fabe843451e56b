"""Proof that an app's own flows survive crashes: run once per point at which a worker can die, and compare the ends."""

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
from flowkit.channel import Channel
from flowkit.errors import ConfigError, DefinitionError, FlowKitError
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
"""The folders of a run: the copy of the working directory, and temporary files."""
FIRST_STEP_SECONDS, LONGEST_STEP_SECONDS = 1.0, 86_400.0
STEPS = 200
"""So often time passes until nothing is pending: some months."""
MEMORY = "/dev/shm"  # noqa: S108 - a folder of its own is made there
"""Where the databases are, if there is such a folder: a process that is killed loses nothing that was not synced."""
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

    `ignored` names columns that differ without any crash, such as times and random ids, and are not compared; `masked`
    names what was compared without its numbers or words, because these differ without any crash. `unwatched` names what
    the flows did elsewhere, of which only `observe` can tell.
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
    """A crash changes what the flows do. `proof` says where and what."""

    def __init__(self, app: str, proof: Proof) -> None:
        super().__init__(f"app {app} is not safe from crashes: {proof}")
        self.proof = proof


class Unwatched(Unrepeatable):
    """The flows do something of which no comparison can tell. It was not done."""


def crash_everywhere(
    app: App,
    scenario: Scenario,
    *,
    directory: Path | str | None = None,
    observe: Callable[[], object] | None = None,
    points: int = POINTS,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Proof:
    """Prove that the flows of an app do the same whenever their worker is killed. Blocks; POSIX only.

    `scenario(harness)` prepares what the flows need and publishes what they work on; each run calls it, in a process
    and on a SQLite database of its own. The flows run in another process, in `harness.until_quiet()` and
    `harness.advance(…)` and after the scenario until nothing is pending. It is killed by SIGKILL at one point, before a
    line of the user's code or a statement to the database, and another one goes on. The end has to be that of the
    undisturbed run: the rows of all tables, what was sent and kept, the dead letters and the ledger; the files in
    `directory`, which is empty at first and emptied for each run; and what `observe()` returns, for other effects: it
    is called in this process, so it sees nothing that was in a worker's memory. Scenario and flows work in a copy of
    the working directory. Its files are compared too, and the real ones stay as they are. A flow that writes elsewhere,
    connects or starts a program is refused before it does so, unless there is `observe`.

    Numbers that the database gives as primary keys may be others. With more than `points` points, so many are taken
    evenly. `progress(done, total)` is called after each of them. Raises CrashUnsafe naming each effect that escaped its
    transaction, Unrepeatable if two undisturbed runs end differently, Unwatched if flows do
    something elsewhere, ScenarioFailed if one fails, ConfigError for a
    directory that is not empty, and DefinitionError for a scenario or observe() that cannot be called.
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
                f"nothing of {', '.join(common.incomparable)} is the same in two runs without a crash, so that nothing "
                "can be said about it; leave it out of directory= and observe=, or let observe= return what does not "
                "vary, such as how often it was written"
            )
        if found := differences(expected, common.of(again.end)):
            raise Unrepeatable(
                "two runs without a crash ended differently, so that nothing can be said about crashes; does the "
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
    """What came of a run: its end, the columns of numbers given by the database, the points that were passed, and at
    which one a worker was killed; None if the run did not come so far."""

    end: End
    keys: Columns
    labels: list[str]
    unwatched: list[str]
    point: str | None


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
        self._url = f"sqlite:///{home / 'flowkit.db'}"
        self._scratch = Scratch(home / WORK, directory)
        if directory is not None and directory.is_dir() and any(directory.iterdir()):
            raise ConfigError(f"directory {directory} is not empty; name one that may be emptied for each run")

    def prepare(self) -> None:
        """Load what each process needs: they are forked from this one."""
        self.clear()
        open_store(Settings(database_url=self._url, broker_url=""), check=False).close()

    def run(self, number: int = 0) -> _Run:
        """Run the scenario, with a worker that is killed at this point; 0 is none. Raises ScenarioFailed."""
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
        """Remove what the last run left."""
        for place in (self._home, self._directory):
            if place is not None:
                place.mkdir(parents=True, exist_ok=True)
                for entry in place.iterdir():
                    if entry != self._scratch.path:
                        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        (self._home / TEMPORARY).mkdir()
        self._scratch.restore()

    def _settle(self) -> None:
        """Let a process that was forked work in the copy of the working directory, and leave nothing elsewhere."""
        os.chdir(self._scratch.path)
        tempfile.tempdir = os.environ["TMPDIR"] = str(self._home / TEMPORARY)
        sys.dont_write_bytecode = True

    def _play(self, pipe: Connection) -> None:
        """The process of the scenario: it publishes, lets time pass until nothing is pending, and tells the end."""
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
        """The process of the flows: whenever it is told the time, it works until nothing is due."""
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
        """A flow is about to do something elsewhere. Without `observe` this ends its process first."""
        if self._observe is not None:
            unwatched[what] = None
            return
        pipe.send(
            Unwatched(
                f"a flow is about to do something that is not compared, and did not: {what}; let it write below the "
                "working directory or directory=, or name observe=, a function that returns what it did"
            )
        )
        os._exit(0)


class _Remote(Harness):
    """The harness of a scenario: its flows run in another process, and in one more when that is killed."""

    def __init__(self, app: App, database_url: str, pipe: Connection) -> None:
        super().__init__(app, database_url)
        self._pipe = pipe

    def until_quiet(self) -> None:
        while not self._quiet():
            self.clock.advance(self.services.settings.lease + 1)  # what the killed one held is free then

    def sent(self, channel: Channel[Any] | str) -> list[Any]:
        raise DefinitionError(
            "a scenario of crash_everywhere cannot ask what was sent, for a worker that is killed cannot tell it; look "
            "at what is stored with harness.session(), or leave it to another test"
        )

    def _quiet(self) -> bool:
        """Let the flows work. False when their process was killed."""
        self._pipe.send(self.clock.now())
        return bool(self._pipe.recv())


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


def _callable(role: str, function: Callable[..., object], *parameters: str) -> None:
    """Raises DefinitionError if it cannot be called with these parameters, or would not run when it is called."""
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
            return  # it is not written in Python, and does not say
    if wrong:
        raise DefinitionError(f"{role} {name}{where} {wrong}; write def {name}({', '.join(parameters)})")
