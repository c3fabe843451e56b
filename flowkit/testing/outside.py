"""Effects of the user's code that a proof does not compare: files elsewhere, programs and connections."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flowkit.testing.points import is_own

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PATHS = {
    "os.rename": (0, 1), "os.remove": (0,), "os.mkdir": (0,), "os.rmdir": (0,), "os.link": (1,), "os.symlink": (1,),
    "os.truncate": (0,), "sqlite3.connect": (0,),
}  # fmt: skip
"""Audit event of Python -> the positions of its arguments that are changed paths."""
DEVICES, MEMORY = "/dev/", "/dev/shm/"  # noqa: S108 - a name to compare with
"""Writing to a device keeps nothing, except in shared memory."""


class Outside:
    """Detects, in the process of the flows, files, programs and connections that are not compared.

    It cannot detect writes to a file that was open before, system calls of a native library, or the effects of a
    program that was started.
    """

    def __init__(self, inside: Sequence[Path], tell: Callable[[str], None]) -> None:
        """`inside`: folders that are compared or thrown away. `tell` is called before each effect, with its text."""
        self._inside = tuple(f"{path.resolve()}{os.sep}" for path in inside)
        self._tell = tell
        self.armed = False

    def watch(self) -> None:
        """Add the audit hook to this process. It cannot be removed."""
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event == "open":
            path, mode, flags = arguments
            changed = [path] if flags & WRITING or (mode and set(mode) & set("wax+")) else []
        elif event in PATHS:
            changed = [arguments[at] for at in PATHS[event]]
        else:
            what = _named(event, arguments)
            if what:
                self._say(what)
            return
        for path in changed:
            if isinstance(path, str | bytes | os.PathLike) and not self._is_inside(os.path.realpath(os.fsdecode(path))):
                self._say(f"file {os.path.realpath(os.fsdecode(path))}")

    def _is_inside(self, path: str) -> bool:
        is_device = path.startswith(DEVICES) and not path.startswith(MEMORY)
        return is_device or f"{path}{os.sep}".startswith(self._inside) or path.endswith(":memory:")

    def _say(self, what: str) -> None:
        """Report an effect with the user's line. Effects of the report itself are ignored."""
        self.armed = False
        try:
            self._tell(f"{what}{_place()}")
        finally:
            self.armed = True


def _named(event: str, arguments: tuple[Any, ...]) -> str:
    """The text of a connection or a started program; empty for other events."""
    match event, arguments:
        case "socket.connect", (_, address):
            host, *port = address if isinstance(address, tuple) else (address,)
            return f"connection to {':'.join(map(str, (host, *port[:1])))}"
        case "socket.sendto", (_, address):
            return f"datagram to {address}"
        case "subprocess.Popen", (executable, given, *_):
            first = given[0] if isinstance(given, list | tuple) and given else given
            return f"program {os.fsdecode(executable or first)}"
        case "os.system" | "os.exec" | "os.posix_spawn", (command, *_):
            return f"program {os.fsdecode(command)}"
    return ""


def _place() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        if is_own(frame.f_code.co_filename):
            return f" (at {Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
