"""The lock files of workers beside an SQLite file. The death of a worker frees its lock, which others see at once."""

import errno
import fcntl
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

from flowkit.errors import ConfigError

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
"""The ids of workers that may have a lock file. A row of the table may hold any text."""


class Locks:
    """A folder of lock files that only its user can read. FlowKit follows no link, for the folder or for a file."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._held: dict[str, int] = {}

    @property
    def descriptors(self) -> Collection[int]:
        """The descriptors of the lock files that this process holds."""
        return self._held.values()

    def hold(self, worker: str) -> None:
        """Hold the lock of a worker until this process ends. Blocks while another process has it. Raises
        ConfigError."""
        if not _ID.fullmatch(worker):
            raise ConfigError(f"worker {worker!r:.80}: its id cannot name a file; write letters, digits, - and _")
        with suppress(FileExistsError):
            os.mkdir(self._folder, 0o700)
        if worker not in self._held:
            with self._opened() as folder:
                descriptor = os.open(
                    worker, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=folder
                )
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._held[worker] = descriptor

    def gone(self, worker: str) -> bool:
        """Whether no process holds the lock of a worker: it is dead, or never existed. Raises ConfigError."""
        if not _ID.fullmatch(worker):
            return True
        try:
            with self._opened() as folder:
                descriptor = os.open(worker, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno == errno.ELOOP:
                return True  # a link, which no worker creates
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    def forget(self, worker: str) -> None:
        """Remove the lock file of a worker that is dead or leaves. Raises ConfigError."""
        descriptor = self._held.pop(worker, None)
        if descriptor is not None:
            os.close(descriptor)
        if _ID.fullmatch(worker):
            with suppress(FileNotFoundError), self._opened() as folder:
                os.unlink(worker, dir_fd=folder)

    def close(self) -> None:
        for worker in list(self._held):
            self.forget(worker)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise ConfigError(f"SQLite: {self._folder} is a link, or no folder; remove it") from None
            raise
        try:
            yield folder
        finally:
            os.close(folder)
