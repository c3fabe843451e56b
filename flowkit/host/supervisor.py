"""The supervisor: it keeps N worker processes alive, and charges a message that killed one."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import IO

from flowkit.disclosure import told
from flowkit.engine.in_flight import COUNT, HEADER, SLOT, InFlight, Slots, State
from flowkit.ports import Clock, Random, Store

FIRST_BACKOFF_SECONDS = 0.1
MOST_BACKOFF_SECONDS = 10.0
PAY_SECONDS = 1.0
"""Delay in seconds before charges that the store did not take are written again."""
SETTLED_SECONDS = 10.0
"""A worker that lived for this many seconds starts its backoff anew."""
REPLACE = 75
"""Exit status of a worker that asks to be replaced: a handler ran past its deadline."""
REFUSED = 2
"""Exit status of a worker that a definition, a setting or a service did not let begin."""
STOPPED = 76
"""Exit status of a worker one of whose flows stopped."""
LOST = 77
"""Exit status of a worker whose database was removed or replaced: a new worker would begin an empty one."""
FINAL = {0: 0, REFUSED: 2, STOPPED: 1, LOST: 2}
"""Exit status of a worker that is not started again, because that would not help -> status of the supervisor: done,
wrong configuration, a flow stopped, the database is gone."""
ASKED = (-signal.SIGTERM, -signal.SIGHUP)
"""Exit statuses of a worker that its supervisor's signal ended before it could finish by itself."""
SLOTS_VARIABLE = "FLOWKIT_SLOTS"
COMMAND = (sys.executable, "-P", "-m", "flowkit")
"""How FlowKit starts itself: without the working directory on the import path, in which others may write."""
_log = logging.getLogger("flowkit.supervisor")


class Child:
    """One worker process and its place."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._slots: Slots | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.failures = 0
        self.due = 0.0
        self.finished = False
        """The worker is not started again."""
        self.replaced = False

    @property
    def slots(self) -> Slots:
        """The worker's notes, in a file that is made at the first use. Raises OSError."""
        if self._slots is None:
            self._file = _allocated(HEADER + SLOT * COUNT)
            self._slots = Slots(self._file.fileno())
        return self._slots

    def start(self, command: Sequence[str], token: int, inherited: Sequence[int]) -> None:
        """Start the process. Raises OSError, and changes nothing, where the machine has no room for it."""
        self.slots.clear()
        self.slots.token = token
        assert self._file is not None
        file = self._file.fileno()
        self.process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            env={**os.environ, SLOTS_VARIABLE: str(file)},
            pass_fds=(file, *inherited),
            start_new_session=True,
        )

    @property
    def ready(self) -> bool:
        return self.process is not None and self.slots.ready

    def close(self) -> None:
        if self._slots is not None:
            self._slots.close()
        if self._file is not None:
            self._file.close()


class Supervisor:
    """Starts `workers` processes of `command`, replaces those that die, and stops them in order.

    One thread steps it; any may call `stop` and `kill`.
    """

    def __init__(
        self,
        command: Sequence[str],
        workers: int,
        store: Store,
        clock: Clock,
        random: Random,
        inherited: Sequence[int] = (),
    ) -> None:
        """`inherited`: descriptors of open files that every worker gets."""
        self._command = list(command)
        self._inherited = tuple(inherited)
        self._store = store
        self._clock = clock
        self._random = random
        self._workers = workers
        self._children = [Child() for _ in range(workers)]
        self._charges: list[Callable[[], None]] = []
        self._pays = float("-inf")
        """Time at which the charges are written next."""
        self._old: deque[Child] = deque()
        """Workers to be replaced."""
        self._heir: Child | None = None
        """The new worker that replaces the next of them as soon as it is ready."""
        self.token = 0
        """The token under which the workers of a group may work. 0 while they wait, or where there is no group."""
        self._proven = False
        """Whether a worker was ever ready: the configuration is right, so a refusal is an outage of what refuses."""
        self.stopping = False
        self.status = 0
        """The highest exit status of the workers that ended by themselves."""

    @property
    def pids(self) -> list[int]:
        """The worker processes that live."""
        processes = [child.process for child in list(self._children)]
        return [process.pid for process in processes if process is not None]

    @property
    def ready(self) -> float:
        """The part of the workers that is ready, from 0 to 1."""
        return min(1.0, sum(child.ready for child in self._children) / self._workers)

    def step(self) -> bool:
        """Reap dead workers, charge the messages that they ran, start those that are due. Returns whether any worker
        lives or will."""
        now = self._clock.monotonic()
        self._proven = self._proven or any(child.ready for child in self._children)
        for child in self._children:
            if child.process is not None and child.process.poll() is not None:
                self._bury(child, now)
        if now >= self._pays:
            self._pay(now)
        self._replace()
        for child in self._children:
            if child.process is None and not (self.stopping or child.finished) and now >= child.due:
                self._start(child, now)
        return any(child.process is not None or not (self.stopping or child.finished) for child in self._children)

    def begin(self, token: int) -> None:
        """Let the workers of a group that is active now begin: they wait for this token."""
        self.token = token
        for child in self._children:
            if child.process is not None:
                child.slots.token = token

    def begin_anew(self) -> None:
        """End the workers at once, because another group is active. New ones wait. The messages that ran did not cause
        this, so they are no suspects."""
        self.token = 0
        for child in self._children:
            if child.process is not None:
                child.process.kill()
                child.process.wait()
                child.slots.clear()

    def resize(self, workers: int) -> None:
        """Change the number of workers: start some, or ask the last ones to finish."""
        self._workers = workers
        there = [child for child in self._children if not child.finished and child is not self._heir]
        self._children += [Child() for _ in range(workers - len(there))]
        for child in there[workers:]:
            child.finished = child.replaced = True
            if child in self._old:
                self._old.remove(child)  # nobody is to replace it
            self._ask(child, signal.SIGHUP)

    def roll(self) -> None:
        """Replace the workers by new ones, one by one: an old one is asked to finish when its heir is ready."""
        self._old.extend(child for child in self._children if child not in self._old and not child.finished)

    def _replace(self) -> None:
        """Take the next step of replacing workers."""
        for child in [one for one in self._children if one.replaced and one.process is None]:
            self._children.remove(child)
            child.close()
        heir = self._heir
        if heir is None:
            if self._old and not self.stopping:
                self._heir = Child()
                self._children.append(self._heir)
        elif heir.finished and not self.stopping:
            _log.error("a new worker ended at once, so no more are replaced: the old ones go on")
            heir.replaced = True
            self._old.clear()
            self._heir = None
        elif heir.ready:
            old = self._old.popleft()
            old.finished = old.replaced = True
            self._ask(old, signal.SIGHUP)
            self._heir = None

    def stop(self) -> None:
        """Ask every worker to finish: SIGTERM."""
        self.stopping = True
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the workers that did not finish within their grace: SIGKILL. Their messages are taken over."""
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        for child in self._children:
            child.close()

    def _signal(self, number: signal.Signals) -> None:
        for child in list(self._children):  # another thread than the one that steps may call this
            self._ask(child, number)

    def _ask(self, child: Child, number: signal.Signals) -> None:
        process = child.process
        if process is not None and process.poll() is None:
            process.send_signal(number)

    def _start(self, child: Child, now: float) -> None:
        child.started = now
        try:
            child.start(self._command, self.token, self._inherited)
        except (OSError, MemoryError) as error:
            self._back_off(child, now)
            _log.error(
                "cannot start a worker: %r; the others go on, and it is tried again in %.1fs; see to open files "
                "(ulimit -n), processes and memory", error, child.due - now
            )  # fmt: skip

    def _bury(self, child: Child, now: float) -> None:
        """Handle the end of a worker: the messages that it ran become suspects, or are charged an attempt; then it
        starts again."""
        assert child.process is not None
        status, pid, child.process = child.process.returncode, child.process.pid, None
        victims = _suspects(list(child.slots.in_flight()), status)
        worker = child.slots.worker
        heir = child is self._heir
        asked = self.stopping or child.replaced
        if asked and status in ASKED and not worker and not victims:  # it had not begun to hear signals itself
            child.finished = True
            return
        outage = status == REFUSED and self._proven and not (heir or child.finished or self.stopping)
        if status in FINAL and not victims and not outage:
            child.finished = True
            if not heir:
                self.status = max(self.status, FINAL[status])
            return
        self._charges += [partial(self._charge, victim, worker) for victim in victims]
        if worker:
            self._charges.append(lambda: self._store.fleet.leave(worker))
        how = f"died ({_named(status)})"
        if status == REPLACE:
            how = "asked to be replaced"
        elif outage:
            how = f"was refused (exit status {status}) and is started again, because this instance has worked before,"
        if heir:
            how += " before it was ready to replace another one, which goes on,"
        _log.warning(
            "worker %d %s with %d message(s) in flight%s", pid, how, len(victims),
            "".join(f"; {victim.identity[0]}: {victim.identity[2]}" for victim in victims[:5]),
        )  # fmt: skip
        self._back_off(child, now)

    def _back_off(self, child: Child, now: float) -> None:
        """Start a worker again soon, and later each time that it ends soon."""
        child.failures = 0 if now - child.started > SETTLED_SECONDS else child.failures + 1
        wait = min(MOST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(child.failures, 20))
        child.due = now + wait * (0.5 + self._random() / 2)

    def _charge(self, victim: InFlight, worker: str) -> None:
        self._store.suspects.charge(victim.identity, worker, late=victim.state is State.OVERDUE)

    def _pay(self, now: float) -> None:
        """Write the charges. Those that cannot be written now are tried again later."""
        while self._charges:
            try:
                self._charges[0]()
            except Exception as error:
                # Any error at all: the supervisor's end would end its workers.
                _log.warning(
                    "cannot record what a dead worker was running, and tries again in %g s: %s",
                    PAY_SECONDS,
                    told(error),
                )
                self._pays = now + PAY_SECONDS
                return
            self._charges.pop(0)


def _allocated(size: int) -> IO[bytes]:
    """An open file without a name, whose space is there. Raises OSError where there is none: without space, a write to
    its mapping ends the process by SIGBUS."""
    made: IO[bytes]
    if sys.platform == "linux":  # needs no directory for temporary files
        made = os.fdopen(os.memfd_create("flowkit-slots"), "r+b")
    else:
        made = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as its place
    try:
        made.write(bytes(size))
        made.flush()
    except OSError:
        made.close()
        raise
    return made


def _suspects(noted: list[InFlight], status: int) -> list[InFlight]:
    """The messages of a dead process that may have killed it. Messages that only waited did not, unless none ran: then
    a thread that a handler started may have done it. A kill from outside proves nothing against messages that
    waited."""
    running = [one for one in noted if one.state is not State.WAITING]
    # A message whose function of `work.run` ran is noted twice: what counts is that it ran alone, or too long.
    once = {one.identity: one for one in sorted(running, key=lambda one: one.state)}
    return list(once.values()) if once or status == -signal.SIGKILL else noted


def _named(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
