"""A container as Kubernetes makes it: process 1 of a namespace, on a read-only root, without privileges.

It runs as the user of the tests, because only that user may be able to read the interpreter.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

# Nothing can be written but devices: no directory is left for temporary files, nor for byte code.
ENTER = """
mount --make-rprivate /
while read -r _ _ _ _ where rest; do
    case "$where" in /proc*|/dev*|/sys*) ;; *) mount -o remount,bind,ro "$where" || exit 125 ;; esac
done </proc/self/mountinfo
exec setpriv --bounding-set -all --inh-caps -all --no-new-privs "$@"
"""
UNSHARE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def possible() -> bool:
    """Whether containers can be made here: that needs Linux, util-linux and root."""
    try:
        return not subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode
    except FileNotFoundError:
        return False


class Container:
    """A running one. Its network is the machine's. Call `close` in the end."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.process = subprocess.Popen(
            [*UNSHARE, "sh", "-c", ENTER, "container", *command],
            env=dict(environment), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    @property
    def init(self) -> int:
        """Its process 1, by the machine's number."""
        [pid] = _children(self.process.pid)
        return pid

    @property
    def zombies(self) -> int:
        """How many processes have ended there that nobody waited for."""
        states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in _children(self.init)]
        return states.count("Z")

    def end(self) -> int:
        """Ask process 1 to finish. Returns its exit code."""
        os.kill(self.init, signal.SIGTERM)
        return self.process.wait(60)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
