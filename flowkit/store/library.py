"""Keeps a process from opening one SQLite file by two SQLite libraries.

Two libraries in one process do not know of each other. SQLite's locks belong to the process: when one library closes
the file, the operating system drops the locks of the other. Two processes then write at once, and destroy the file.
"""

import importlib.util
import os
import sys
import threading
from functools import cache
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit
from weakref import WeakKeyDictionary

from flowkit.errors import ConfigError

FileId = tuple[int, int]
"""Device and inode, which identify a file whatever its name."""


@cache
def sqlite_driver() -> ModuleType:
    """Return the SQLite driver to use: the newer one of pysqlite3 and the standard library's sqlite3."""
    candidates = [importlib.import_module("sqlite3")]
    if importlib.util.find_spec("pysqlite3"):
        candidates.append(importlib.import_module("pysqlite3.dbapi2"))
    return max(candidates, key=lambda module: module.sqlite_version_info)


def file_id(path: Any) -> FileId | None:
    """Return the identity of the file at a path; None if there is none."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def refuse(path: Any, library: str) -> ConfigError:
    """Return the error for another library that opens the file of a store, or has it open."""
    ours = sqlite_driver().__name__.split(".")[0]
    return ConfigError(
        f"{library} opens {path}, which FlowKit has open in this process through {ours}: two SQLite libraries in one "
        "process drop each other's locks, and destroy the file; use the same one: "
        "create_engine(url, module=flowkit.sqlite_driver()), or flowkit.sqlite_driver().connect(path)"
    )


class Files:
    """The SQLite files of this process's stores. If the stores use another library, sqlite3 may not open them."""

    def __init__(self) -> None:
        self._open: WeakKeyDictionary[object, FileId] = WeakKeyDictionary()
        """Object that has a file open -> the file."""
        self._lock = threading.Lock()
        if sqlite_driver().__name__ != "sqlite3":
            sys.addaudithook(self._hear)  # a hook stays until the process ends

    def open(self, owner: object, file: FileId) -> None:
        with self._lock:
            self._open[owner] = file

    def close(self, owner: object) -> None:
        with self._lock:
            self._open.pop(owner, None)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "sqlite3.connect":  # pysqlite3 raises no audit events
            path = _path(arguments[0])
            with self._lock:
                known = file_id(path) in set(self._open.values())
            if known:
                raise refuse(path, "sqlite3")


@cache
def files() -> Files:
    """Return the files of this process, one object for all stores: a hook cannot be removed."""
    return Files()


def _path(database: Any) -> str:
    """Return the path in the argument of sqlite3.connect(), which may be a URI."""
    name = os.fsdecode(database)
    return unquote(urlsplit(name).path) if name.startswith("file:") else name
