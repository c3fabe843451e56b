"""Sources of handlers for the analysis."""

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

from flowkit import App
from flowkit.analysis.statelessness import Trap, traps

HEAD = """
import asyncio, collections, contextvars, functools, itertools, json, logging, os, pathlib, shelve, shutil, sqlite3
import tempfile, threading
from collections import Counter, defaultdict, deque
from pathlib import Path
from sqlalchemy.orm import Session
from flowkit import App, Objects, UnitOfWork

COUNT = 0
CACHE = {}
SEEN = []
KNOWN = set()
QUEUE = deque()
COUNTS = Counter()
GROUPS = defaultdict(list)
NESTED = defaultdict(lambda: defaultdict(int))
MIXED = {"count": 0, "seen": []}
NUMBERS = itertools.count()
FOLDER = Path("kept")
LOCAL = threading.local()
CURRENT = contextvars.ContextVar("CURRENT")
LOG = logging.getLogger("a")


class State:
    total = 0

    def __init__(self):
        self.items = []
        self.by = {}

    def keep(self, item):
        self.items.append(item)  # kept

    @classmethod
    def count(cls):
        cls.total += 1  # counted

    @staticmethod
    def remember(item):
        SEEN.append(item)  # remembered


class Metric:
    def add(self, number): ...
    def update(self, number): ...


STATE = State()
METRIC = Metric()
METRICS = {"a": METRIC}
app = App("a")
things = app.channel("things", dict)
"""
names = itertools.count()
loaded: list[str] = []


def module(folder: Path, text: str, name: str = "") -> ModuleType:
    """A module of this text, imported from a file."""
    name = name or f"stateless_{next(names)}"
    file = folder / f"{name}.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    loaded.append(name)
    spec.loader.exec_module(made)
    return made


def found(app: App) -> list[Trap]:
    return [trap for flow in app.flows.values() for trap in traps(flow)]


def search(folder: Path, text: str) -> list[tuple[str, Trap]]:
    """Each trap of an app, with the line of source that it names."""
    text = HEAD + text
    lines = text.splitlines()
    return [(lines[trap.line - 1], trap) for trap in found(module(folder, text).app)]


def handler(body: str, parameters: str = "", kind: str = "def") -> str:
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    return f"@app.flow(things)\n{kind} handle(body{parameters}):\n{indented}\n"
