"""Crash points of a worker: before each line of the user's code, and before each statement to the database."""

import inspect
import linecache
import os
import signal
import sys
import sysconfig
import threading
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from sqlalchemy import Engine, event

import flowkit
from flowkit.app import App

VISITS = 3
"""Each line of the user's code is a crash point the first VISITS times that it runs, also in a loop."""
OTHERS = tuple(
    f"{folder}{os.sep}"
    for folder in (
        Path(flowkit.__file__).parent,
        *(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")),
    )
)
"""Folders of code that is not the user's, except for an app that is installed there."""


class Points:
    """Counts the crash points of this process, and kills it at the point `number`."""

    def __init__(self, tell: Connection, number: int, installed: tuple[str, ...]) -> None:
        self._tell = tell
        self._number = number
        self._installed = installed
        self._visits: Counter[tuple[str, int]] = Counter()
        self.labels: list[str] = []
        self.armed = False

    def watch(self) -> None:
        """Count a crash point before each statement and each line of the user's code from now on."""
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
        return self._line if is_own(file) or file.startswith(self._installed) else None

    def _line(self, frame: FrameType, kind: str, _: object) -> Any:
        if kind == "line" and self.armed:
            file, line = frame.f_code.co_filename, frame.f_lineno
            self._visits[file, line] += 1
            if self._visits[file, line] <= VISITS:
                self._pass(f"before {Path(file).name}:{line} `{linecache.getline(file, line).strip()}`")
        return self._line


def _statement(text: str) -> str:
    return f"before the statement {' '.join(text.split())[:60]}"


def is_own(file: str) -> bool:
    return not file.startswith(("<", *OTHERS))


def installed(app: App) -> tuple[str, ...]:
    """The installed packages that contain handlers of an app, as path prefixes."""
    found = set()
    for flow in app.flows.values():
        code = getattr(inspect.unwrap(flow.handler), "__code__", None)
        file = code.co_filename if code else ""
        for folder in OTHERS[1:]:
            if file.startswith(folder):
                name, separator, _ = file.removeprefix(folder).partition(os.sep)
                found.add(f"{folder}{name}{separator}")
                break
    return tuple(found)
