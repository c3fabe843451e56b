"""Signals that ask a process to finish: SIGTERM, SIGINT, and the death of its parent."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from flowkit.fork import part_with

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG = 1
PARENT_VARIABLE = "FLOWKIT_SUPERVISOR"
"""The process id of the supervisor, for its workers."""
LOOK_SECONDS = 1.0
END_SECONDS = 10.0


class Signals:
    """Receives SIGTERM, SIGINT and SIGHUP from now on. Create it in the main thread.

    A separate thread reads the signals. A signal handler runs between any two steps of the main thread, and must not
    take a lock that the main thread may hold, as threading.Event.set does.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        """Set by the first signal: finish."""
        self.again = threading.Event()
        """Set by the second signal: end at once."""
        self.hangup = threading.Event()
        """Set by SIGHUP. If the terminal is gone, SIGHUP means finish, and sets `asked`."""
        self._calls: list[Callable[[], None]] = []
        self._at_hangup: Callable[[], None] = self.hangup.set
        self._calling = threading.Lock()
        self._terminal = os.isatty(0)
        reading, writing = self._pipe = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in NUMBERS:
            signal.signal(number, lambda *_: None)
        self._before = threading.local()
        os.register_at_fork(before=self._hold_off, after_in_parent=self._let_come, after_in_child=self._give_up)
        part_with(self, lambda one: one._pipe)
        threading.Thread(target=self._read, args=(reading, bytes(NUMBERS)), name="flowkit-signals", daemon=True).start()

    def call(self, function: Callable[[], None]) -> None:
        """Call `function` at the first signal, or at once if that has come. Any thread may call this."""
        with self._calling:
            self._calls.append(function)
            if not self.asked.is_set():
                return
        function()

    def call_at_hangup(self, function: Callable[[], None]) -> None:
        """Call `function` at SIGHUP, or at once if that has come. Any thread may call this."""
        with self._calling:
            self._at_hangup = function
            if not self.hangup.is_set():
                return
        function()

    def ignore(self) -> None:
        """Ignore the signals from now on: during its shutdown the interpreter would let them kill the process. SIGALRM
        ends the process if the shutdown hangs, for example because nobody reads its output. Call it in the main
        thread."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, END_SECONDS)
        for number in NUMBERS:
            signal.signal(number, signal.SIG_IGN)

    def _hold_off(self) -> None:
        """Before a fork, block the signals until `_give_up` in the child: through the pipe, this process would get the
        child's."""
        self._before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)

    def _let_come(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before.mask)

    def _give_up(self) -> None:
        """In a forked child, restore the default handling of signals, so that its parent does not get them."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        self._let_come()

    def _read(self, descriptor: int, numbers: bytes) -> None:
        while byte := os.read(descriptor, 1):
            if byte not in numbers:
                continue
            if byte == bytes((signal.SIGHUP,)) and (os.isatty(0) or not self._terminal):
                with self._calling:
                    hung_up = self._at_hangup
                hung_up()
                continue
            if self.asked.is_set():
                self.again.set()
                continue
            with self._calling:
                self.asked.set()
                calls = list(self._calls)
            for function in calls:
                function()


def name_parent() -> None:
    """Set the environment variable by which the processes that this one starts know their supervisor."""
    os.environ[PARENT_VARIABLE] = str(os.getpid())


def die_with_parent() -> None:
    """Get a SIGTERM when the supervisor dies: from the kernel on Linux, from a polling thread elsewhere.

    A supervisor that died while this process started is noticed too.
    """
    parent = int(os.environ.pop(PARENT_VARIABLE, "") or os.getppid())
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
        return

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, name="flowkit-parent", daemon=True).start()
