"""The supervisor: it keeps N worker processes alive, and counts an attempt of a message that killed one."""

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
"""Delay in seconds before charges that the store refused are written again."""
SETTLED_SECONDS = 10.0
"""After this many seconds of life, a worker's backoff starts anew."""
REPLACE = 75
"""Exit status of a worker that asks to be replaced: a handler ran past its deadline."""
REFUSED = 2
"""Exit status of a worker that could not begin because of a definition, a setting or a service."""
STOPPED = 76
"""Exit status of a worker in which a flow stopped."""
LOST = 77
"""Exit status of a worker whose database was removed or replaced: a new worker would begin an empty one."""
FINAL = {0: 0, REFUSED: 2, STOPPED: 1, LOST: 2}
"""Exit status of a worker that is not started again, because that would not help -> exit status of the supervisor.
Finished; wrong configuration; a flow stopped; the database is gone."""
ASKED = (-signal.SIGTERM, -signal.SIGHUP)
"""Exit statuses of a worker that its supervisor's signal ended before the worker handled signals itself."""
SLOTS_VARIABLE = "FLOWKIT_SLOTS"
COMMAND = (sys.executable, "-P", "-m", "flowkit")
"""The command that starts FlowKit. -P keeps the working directory, where others may write, off the import path."""
_log = logging.getLogger("flowkit.supervisor")


class Child:
    """One worker process and its slots, which outlive the process."""

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
        """The worker's notes of its messages in flight, in a file that is created at the first use. Raises OSError."""
        if self._slots is None:
            self._file = _allocated(HEADER + SLOT * COUNT)
            self._slots = Slots(self._file.fileno())
        return self._slots

    def start(self, command: Sequence[str], token: int, inherited: Sequence[int]) -> None:
        """Start the process. Raises OSError, and changes nothing, if the machine lacks memory, processes or files."""
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
    """Starts `workers` processes of `command`, replaces dead ones, and stops them cleanly.

    One thread steps it; any thread may call `stop` and `kill`.
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
        """`inherited`: file descriptors that every worker gets."""
        self._command = list(command)
        self._inherited = tuple(inherited)
        self._store = store
        self._clock = clock
        self._random = random
        self._workers = workers
        self._children = [Child() for _ in range(workers)]
        self._charges: list[Callable[[], None]] = []
        self._pays = float("-inf")
        """Monotonic time at which the charges are written next."""
        self._old: deque[Child] = deque()
        """Workers to be replaced."""
        self._heir: Child | None = None
        """The new worker that replaces the first of `_old` as soon as it is ready."""
        self.token = 0
        """The token under which the workers of a group may work. 0 while they wait, or without a group."""
        self._proven = False
        """Whether a worker was ever ready. Then the configuration is right, and a later refusal is an outage."""
        self.stopping = False
        self.status = 0
        """The highest of the FINAL statuses of the workers that ended by themselves."""

    @property
    def pids(self) -> list[int]:
        """Process ids of the living workers."""
        processes = [child.process for child in list(self._children)]
        return [process.pid for process in processes if process is not None]

    @property
    def ready(self) -> float:
        """The ready part of the workers, from 0 to 1."""
        return min(1.0, sum(child.ready for child in self._children) / self._workers)

    def step(self) -> bool:
        """Reap dead workers, charge the messages that they ran, and start the workers that are due. Returns False when
        no worker lives or will be started. Blocks for the store."""
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
        """Let the workers begin, because their group is active now: they wait for this token."""
        self.token = token
        for child in self._children:
            if child.process is not None:
                child.slots.token = token

    def begin_anew(self) -> None:
        """Kill the workers at once, because another group is active. `step` starts new ones, which wait for a token.
        The messages in flight did not cause this, so they do not become suspects."""
        self.token = 0
        for child in self._children:
            if child.process is not None:
                child.process.kill()
                child.process.wait()
                child.slots.clear()

    def resize(self, workers: int) -> None:
        """Change the number of workers: `step` starts new ones; the last ones are asked to finish."""
        self._workers = workers
        there = [child for child in self._children if not child.finished and child is not self._heir]
        self._children += [Child() for _ in range(workers - len(there))]
        for child in there[workers:]:
            child.finished = child.replaced = True
            if child in self._old:
                self._old.remove(child)  # it gets no replacement
            self._ask(child, signal.SIGHUP)

    def roll(self) -> None:
        """Replace the workers one by one: an old worker is asked to finish when its replacement is ready."""
        self._old.extend(child for child in self._children if child not in self._old and not child.finished)

    def _replace(self) -> None:
        """Start the next replacement, or finish one that is ready or failed."""
        for child in [one for one in self._children if one.replaced and one.process is None]:
            self._children.remove(child)
            child.close()
        heir = self._heir
        if heir is None:
            if self._old and not self.stopping:
                self._heir = Child()
                self._children.append(self._heir)
        elif heir.finished and not self.stopping:
            _log.error("a new worker ended at once, so no more are replaced: the old ones continue")
            heir.replaced = True
            self._old.clear()
            self._heir = None
        elif heir.ready:
            old = self._old.popleft()
            old.finished = old.replaced = True
            self._ask(old, signal.SIGHUP)
            self._heir = None

    def stop(self) -> None:
        """Ask every worker to finish, by SIGTERM. Does not block."""
        self.stopping = True
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the workers, by SIGKILL. Other workers take over their messages. Does not block."""
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        for child in self._children:
            child.close()

    def _signal(self, number: signal.Signals) -> None:
        for child in list(self._children):  # a copy: another thread may change the list in `step`
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
                "cannot start a worker: %r; the others continue, and it is tried again in %.1fs; check the limits of "
                "open files (ulimit -n), processes and memory", error, child.due - now
            )  # fmt: skip

    def _bury(self, child: Child, now: float) -> None:
        """Handle the end of a worker: its running messages become suspects, or the attempt counts; then schedule its
        next start."""
        assert child.process is not None
        status, pid, child.process = child.process.returncode, child.process.pid, None
        victims = _suspects(list(child.slots.in_flight()), status)
        worker = child.slots.worker
        heir = child is self._heir
        asked = self.stopping or child.replaced
        if asked and status in ASKED and not worker and not victims:  # it did not handle signals itself yet
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
            how += " before it was ready to replace another worker, which continues,"
        _log.warning(
            "worker %d %s with %d message(s) in flight%s", pid, how, len(victims),
            "".join(f"; {victim.identity[0]}: {victim.identity[2]}" for victim in victims[:5]),
        )  # fmt: skip
        self._back_off(child, now)

    def _back_off(self, child: Child, now: float) -> None:
        """Set the time of a worker's next start. The wait doubles each time that the worker ends soon after a start."""
        child.failures = 0 if now - child.started > SETTLED_SECONDS else child.failures + 1
        wait = min(MOST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(child.failures, 20))
        child.due = now + wait * (0.5 + self._random() / 2)

    def _charge(self, victim: InFlight, worker: str) -> None:
        self._store.suspects.charge(victim.identity, worker, late=victim.state is State.OVERDUE)

    def _pay(self, now: float) -> None:
        """Write the charges. After an error, try the rest again after PAY_SECONDS."""
        while self._charges:
            try:
                self._charges[0]()
            except Exception as error:
                # Any error: if the supervisor ended, so would its workers.
                _log.warning(
                    "cannot record the messages that a dead worker was running; tries again in %g s: %s",
                    PAY_SECONDS,
                    told(error),
                )
                self._pays = now + PAY_SECONDS
                return
            self._charges.pop(0)


def _allocated(size: int) -> IO[bytes]:
    """Open a file without a name, with `size` bytes allocated. Raises OSError if there is no space: without it, a write
    to the mapping would end the process by SIGBUS."""
    made: IO[bytes]
    if sys.platform == "linux":  # needs no directory for temporary files
        made = os.fdopen(os.memfd_create("flowkit-slots"), "r+b")
    else:
        made = tempfile.TemporaryFile()  # noqa: SIM115 - stays open as long as its child's slots
    try:
        made.write(bytes(size))
        made.flush()
    except OSError:
        made.close()
        raise
    return made


def _suspects(noted: list[InFlight], status: int) -> list[InFlight]:
    """The messages that may have killed their process. Waiting messages did not, unless none ran: then a thread that a
    handler started may have done it. A SIGKILL comes from outside, so waiting messages did not cause it."""
    running = [one for one in noted if one.state is not State.WAITING]
    # A message inside `work.run` is noted twice: the note that counts is that it ran alone, or too long.
    once = {one.identity: one for one in sorted(running, key=lambda one: one.state)}
    return list(once.values()) if once or status == -signal.SIGKILL else noted


def _named(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
