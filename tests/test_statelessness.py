"""`flowkit check` warns of what handlers keep in a worker's memory or in local files, and of nothing else."""

import importlib.util
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flowkit import App
from flowkit.analysis.statelessness import Trap, traps
from flowkit.cli.load import load

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


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    while loaded:
        del sys.modules[loaded.pop()]


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


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("global COUNT\nCOUNT = 1  # HERE", "setting COUNT"),
        ("global COUNT\nCOUNT += 1  # HERE", "setting COUNT"),
        ("global COUNT\ndel COUNT  # HERE", "deleting COUNT"),
        ("global NEW\nfor NEW in body: pass  # HERE", "setting NEW"),
        ("global NEW\nwith LOCK as NEW: pass  # HERE", "setting NEW"),
        ("global NEW\nif (NEW := len(body)): pass  # HERE", "setting NEW"),
        ("global COUNT\nCOUNT, other = 1, 2  # HERE", "setting COUNT"),
        ("CACHE['a'] = 1  # HERE", "setting CACHE['a']"),
        ("CACHE[body['id']] += 1  # HERE", "setting CACHE[body['id']]"),
        ("CACHE['a']['b'] = 1  # HERE", "setting CACHE['a']['b']"),
        ("del CACHE['a']  # HERE", "deleting CACHE['a']"),
        ("SEEN[0:1] = []  # HERE", "setting SEEN[0:1]"),
        ("SEEN.append(body)  # HERE", "SEEN.append(body)"),
        ("KNOWN.add(body['id'])  # HERE", "KNOWN.add(body['id'])"),
        ("KNOWN.discard(1)  # HERE", "KNOWN.discard(1)"),
        ("CACHE.update(body)  # HERE", "CACHE.update(body)"),
        ("CACHE.pop('a', None)  # HERE", "CACHE.pop('a', None)"),
        ("CACHE.setdefault('a', []).append(1)  # HERE", "CACHE.setdefault('a', [])"),
        ("QUEUE.appendleft(body)  # HERE", "QUEUE.appendleft(body)"),
        ("COUNTS.update('a')  # HERE", "COUNTS.update('a')"),
        ("COUNTS['a'] += 1  # HERE", "setting COUNTS['a']"),
        ("CACHE['a'].append(1)  # HERE", "CACHE['a'].append(1)"),
        ("CACHE[body['id']].add(1)  # HERE", "CACHE[body['id']].add(1)"),
        ("CACHE['a']['b'].update(c=1)  # HERE", "CACHE['a']['b'].update(c=1)"),
        ("MIXED['seen'].append(1)  # HERE", "MIXED['seen'].append(1)"),
        ("STATE.by['a'].append(1)  # HERE", "STATE.by['a'].append(1)"),
        ("GROUPS['a'].append(1)  # HERE", "GROUPS['a'].append(1)"),
        ("NESTED['a']['b'] += 1  # HERE", "setting NESTED['a']['b']"),
        ("os.environ['A'] = 'b'  # HERE", "setting os.environ['A']"),
        ("STATE.last = body  # HERE", "setting STATE.last"),
        ("STATE.items.append(body)  # HERE", "STATE.items.append(body)"),
        ("STATE.a.b.c = body  # HERE", "setting STATE.a.b.c"),
        ("State.total += 1  # HERE", "setting State.total"),
        ("handle.calls = 1  # HERE", "setting handle.calls"),
        ("json.last = body  # HERE", "setting json.last"),
        ("setattr(STATE, 'last', body)  # HERE", "setattr(STATE, 'last', body)"),
        ("return next(NUMBERS)  # HERE", "next(NUMBERS)"),
        ("return [SEEN.append(one) for one in body]  # HERE", "SEEN.append(one)"),
        ("def inner():\n    SEEN.append(1)  # HERE\ninner()", "SEEN.append(1)"),
        ("def inner():\n    global COUNT\n    COUNT = 1  # HERE\ninner()", "setting COUNT"),
        ("x = lambda: SEEN.append(1)  # HERE", "SEEN.append(1)"),
    ],
)
def test_memory_that_outlives_the_message(tmp_path: Path, body: str, what: str) -> None:
    [(line, trap)] = search(tmp_path, "LOCK = None\n" + handler(body))
    assert line.endswith("# HERE")
    assert trap.what == f"{what} writes to the memory of this worker alone"
    assert (trap.flow, trap.calls) == ("a.handle", ())


@pytest.mark.parametrize(
    "body",
    [
        "return CACHE.get('a'), CACHE['a'], len(SEEN), 1 in KNOWN, COUNT, SEEN.index(1), COUNTS.most_common(), SEEN[0]",
        "for one in SEEN: print(one)",
        "SEEN = []\nSEEN.append(1)",
        "CACHE = dict(body)\nCACHE['a'] = 1\nCACHE.update(a=1)",
        "COUNT = 0\nCOUNT += 1",
        "with open('a') as SEEN: SEEN.append(1)",
        "for SEEN in body: SEEN.append(1)",
        "return [SEEN.pop() for SEEN in body]",
        "def inner(SEEN):\n    SEEN.append(1)\ninner([])",
        "class Inner:\n    COUNT = 1",
        "body['a'] = 1\nbody.update(b=2)\nbody.last = 3",
        "found = []\ndef inner():\n    found.append(1)\ninner()",
        "count = 0\ndef inner():\n    nonlocal count\n    count += 1\ninner()",
        "STATE = State()\nSTATE.last = 1\nSTATE.keep(1)",
        "LOG.info('a')\nLOG.setLevel(10)\nlogging.getLogger('b').warning('c')",
        "METRIC.add(1)\nMETRIC.update(1)",
        "METRICS['a'].add(1)\nMETRICS[body['id']].add(1)\nbody['a'].append(1)\njson.loads('{}')['a'].append(1)",
        "MIXED['count'].add(1)\nfound = {}\nfound['a'].append(1)\nLOCAL.by['a'].append(1)",
        "LOCAL.last = 1\nLOCAL.items['a'] = 1",
        "CURRENT.set(1)",
        "return next(iter(SEEN))",
        "def inner(seen=[]):\n    seen.append(1)\ninner()",
        "global COUNT, json\nimport json\nprint(COUNT)",
        "return sorted(SEEN), SEEN + [1], KNOWN | {1}, {**CACHE, 'a': 1}, SEEN.copy(), json.dumps(CACHE)",
    ],
)
def test_memory_of_one_run_is_innocent(tmp_path: Path, body: str) -> None:
    assert search(tmp_path, handler(body)) == []


def test_parameters_that_shadow_a_global_are_innocent(tmp_path: Path) -> None:
    assert search(tmp_path, handler("SEEN.append(1)\nCACHE['a'] = 1", ", SEEN=None, *, CACHE=None")) == []


def test_a_mutable_default_is_kept(tmp_path: Path) -> None:
    text = "def note(item, seen=[], *, by={}):\n    seen.append(item)  # HERE\n    by['a'] = item  # HERE\n"
    text += "def fresh(item, seen=[]):\n    seen = list(seen)\n    seen.append(item)\n    return seen\n"
    lines = search(tmp_path, text + handler("note(body)\nfresh(body)"))
    assert [(line[-6:], trap.what.split(" writes")[0], trap.calls) for line, trap in lines] == [
        ("# HERE", "seen.append(item)", ("note",)),
        ("# HERE", "setting by['a']", ("note",)),
    ]


def test_a_closure_is_kept(tmp_path: Path) -> None:
    text = """
def make():
    count, seen, empty = 0, [], []
    def handle(body):
        nonlocal count
        count += 1  # HERE
        seen.append(body)  # HERE
        empty.append(1)
        print(later)
    del empty
    return handle
    later = 1

app.flow(things, name="made")(make())
"""
    lines = search(tmp_path, text)
    assert [(line[-6:], trap.what.split(" writes")[0]) for line, trap in lines] == [
        ("# HERE", "setting count"),
        ("# HERE", "seen.append(body)"),
    ]


def test_the_object_of_a_method_is_kept(tmp_path: Path) -> None:
    text = """
class Handlers:
    def __init__(self):
        self.known = {}
    def handle(self, body):
        self.last = body  # HERE
        self.known[1] = body  # HERE
        self.more(body)
        fresh = []
        fresh.append(self.known)
    def more(self, body):
        self.known.clear()  # HERE

app.flow(things)(Handlers().handle)
"""
    lines = search(tmp_path, text)
    assert [line[-6:] for line, _ in lines] == ["# HERE"] * 3
    assert [trap.calls for _, trap in lines] == [(), (), ("Handlers.more",)]


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    "body",
    [
        "open('a', 'w')",
        "open('a', mode='ab')",
        "open('a', 'x')",
        "open('a', 'r+')",
        "with open(body['name'], 'w') as file:  # HERE\n    file.write('a')",
        "with FOLDER.open('a') as file:  # HERE\n    file.write('a')",
        "Path('a').write_text('b')",
        "pathlib.Path('a').write_bytes(b'b')",
        "Path('a').open(mode='w')",
        "Path('a').touch()",
        "Path('a', 'b').parent.mkdir(parents=True)",
        "(FOLDER / body['name']).unlink(missing_ok=True)",
        "FOLDER.joinpath('a').rename('b')",
        "path = FOLDER / 'a'\npath.write_text('b')  # HERE",
        "path = Path.cwd() / 'a'\nunfinished = path.with_suffix('.b')\nunfinished.replace(path)  # HERE",
        "for file in FOLDER.glob('*'):\n    file.unlink()  # HERE",
        "shutil.copy('a', 'b')",
        "shutil.copyfile('a', 'b')",
        "shutil.move('a', 'b')",
        "shutil.rmtree('a')",
        "os.remove('a')",
        "os.rename('a', 'b')",
        "os.makedirs('a')",
        "sqlite3.connect('a.db')",
        "os.open('a', os.O_WRONLY | os.O_CREAT)",
        "os.open('a', flags=os.O_RDWR)",
        "shelve.open('a')",
        "with shelve.open('a', flag='n') as shelf:  # HERE\n    print(shelf)",
        "with tempfile.NamedTemporaryFile() as file:\n    os.replace(file.name, 'a')  # HERE",
    ],
)
def test_local_files(tmp_path: Path, body: str) -> None:
    [(line, trap)] = search(tmp_path, handler(body if "# HERE" in body else f"{body}  # HERE"))
    assert line.endswith("# HERE")
    assert re.fullmatch(r".+ writes to the disk of this host alone", trap.what)
    assert "tempfile" in trap.instead


@pytest.mark.parametrize(
    "body",
    [
        "open('a')",
        "open('a', 'rb').read()",
        "open('a', body['mode'])",
        "open = print\nopen('a', 'w')",
        "FOLDER.read_text().replace('a', 'b')",
        "str(FOLDER).replace('a', 'b')",
        "FOLDER.open().read()",
        "FOLDER.exists()",
        "os.path.exists('a')\nos.listdir('.')\nos.getpid()",
        "body.write_text('a')\nbody.unlink()\nbody.rename('b')\nbody.touch()",
        "tempfile.TemporaryFile().write(b'a')",
        "with tempfile.TemporaryDirectory() as folder:\n    Path(folder, 'a').write_text('b')",
        "with tempfile.TemporaryDirectory() as folder:\n    path = Path(folder) / 'a'\n    open(path, 'w')",
        "folder = tempfile.mkdtemp()\nshutil.copy('a', os.path.join(folder, 'b'))\nshutil.rmtree(folder)",
        "with tempfile.TemporaryDirectory() as folder:\n    render(Path(folder) / 'a')\n    render(path=Path(folder))",
        "os.open('a', os.O_RDONLY)\nos.open('a', body['flags'])\nos.open('a', os.O_RDONLY | os.O_CLOEXEC)",
        "shelve.open('a', 'r')\nshelve.open('a', flag='r')",
        "with tempfile.TemporaryDirectory() as folder:\n    shelve.open(os.path.join(folder, 'a'))",
        "sqlite3.connect(':memory:')",
        "sqlite3.connect('file:a.db?mode=ro', uri=True)",
        "shutil.copyfileobj(body, body)",
        "shutil.which('a')\nos.environ.get('A')",
    ],
)
def test_files_that_are_read_or_temporary_are_innocent(tmp_path: Path, body: str) -> None:
    text = "def render(path: Path):\n    path.write_text('a')\n    open(path, 'w')\n"
    assert search(tmp_path, text + handler(body)) == []


def test_paths_that_others_made_may_be_anywhere(tmp_path: Path) -> None:
    text = "class Remote(type(Path())): ...\nBUCKET = Remote('a')\n"
    assert search(tmp_path, text + handler("(BUCKET / 'b').write_text('c')\nRemote('a').unlink()")) == []


def test_a_path_that_is_given_to_a_function(tmp_path: Path) -> None:
    text = "def render(path: Path):\n    path.write_text('a')  # HERE\n" + handler("render(FOLDER / 'a')")
    [(line, trap)] = search(tmp_path, text)
    assert (line[-6:], trap.calls) == ("# HERE", ("render",))


# ---------------------------------------------------------------- what is followed


def test_functions_that_the_handler_calls_are_followed(tmp_path: Path) -> None:
    text = """
def accept(body):
    note(body)

def note(body):
    SEEN.append(body)  # HERE
    accept(body)

"""
    [(line, trap)] = search(tmp_path, text + handler("accept(body)"))
    assert (line[-6:], trap.calls) == ("# HERE", ("accept", "note"))
    assert "flow a.handle, by accept → note: SEEN.append(body) writes to the memory" in str(trap)


@pytest.mark.parametrize(
    ("call", "line", "calls"),
    [
        ("STATE.keep(body)", "# kept", ("State.keep",)),
        ("State.count()", "# counted", ("State.count",)),
        ("STATE.count()", "# counted", ("State.count",)),
        ("State.remember(1)", "# remembered", ("State.remember",)),
        ("STATE.remember(1)", "# remembered", ("State.remember",)),
    ],
)
def test_methods_of_lasting_objects_are_followed(tmp_path: Path, call: str, line: str, calls: tuple[str, ...]) -> None:
    [(source, trap)] = search(tmp_path, handler(call))
    assert (source.endswith(line), trap.calls) == (True, calls)


def test_functions_that_are_handed_on_are_followed(tmp_path: Path) -> None:
    text = "def write(db, outbox):\n    SEEN.append(1)  # HERE\n"
    text += handler(
        "await work.run(write)\nawait work.run(functools.partial(write))", ", work: UnitOfWork", "async def"
    )
    [(line, trap)] = search(tmp_path, text)
    assert (line[-6:], trap.calls) == ("# HERE", ("write",))
    assert "`work: UnitOfWork`" in trap.instead


def test_calls_are_followed_to_a_depth(tmp_path: Path) -> None:
    text = "".join(f"def f{n}():\n    f{n + 1}()\n" for n in range(1, 6)) + "def f6():\n    SEEN.append(1)\n"
    assert search(tmp_path, text + handler("f1()")) == []
    [(_, trap)] = search(tmp_path, text + handler("f2()"))
    assert trap.calls == ("f2", "f3", "f4", "f5", "f6")


def test_neighbours_are_followed_and_others_are_not(tmp_path: Path) -> None:
    text = "SEEN = []\ndef note(item):\n    SEEN.append(item)\n"
    other = tmp_path / "other"
    other.mkdir()
    near, far = module(tmp_path, text).__name__, module(other, text).__name__
    text = f"import {near}\nfrom {far} import note\n" + handler(f"{near}.note(1)\nnote(1)\njson.dumps(1)")
    [(_, trap)] = search(tmp_path, text)
    assert (trap.file, trap.line, trap.calls) == (str(tmp_path / f"{near}.py"), 3, ("note",))
    [(_, trap)] = search(tmp_path, f"import {near}\n" + handler(f"{near}.SEEN.append(1)"))
    assert trap.what.startswith(f"{near}.SEEN.append(1)")


def test_decorated_handlers_are_unwrapped(tmp_path: Path) -> None:
    text = """
def counted(function):
    calls = 0
    @functools.wraps(function)
    def inner(*arguments):
        nonlocal calls
        calls += 1  # HERE
        return function(*arguments)
    return inner

@app.flow(things)
@counted
@functools.lru_cache
@counted
def handle(body):
    SEEN.append(1)  # HERE
"""
    lines = search(tmp_path, text)
    assert {line for line, _ in lines} == {"        calls += 1  # HERE", "    SEEN.append(1)  # HERE"}


def test_a_memo_is_innocent_unless_what_it_remembers_keeps_state(tmp_path: Path) -> None:
    text = "@functools.lru_cache(10)\ndef double(n):\n    return 2 * n\n"
    text += "@functools.cache\ndef note(n):\n    SEEN.append(n)  # HERE\n"
    [(line, trap)] = search(tmp_path, text + handler("double(2)\nnote(1)"))
    assert (line[-6:], trap.calls) == ("# HERE", ("note",))


def test_lambdas(tmp_path: Path) -> None:
    [(line, _)] = search(tmp_path, "app.flow(things, name='x')(lambda body: SEEN.append(body))  # HERE")
    assert line.endswith("# HERE")


def test_what_is_provided_is_a_resource(tmp_path: Path) -> None:
    assert search(tmp_path, "app.provide(State, State)\n" + handler("state.keep(1)", ", state: State")) == []


# ---------------------------------------------------------------- what is meant


@pytest.mark.parametrize(
    "body",
    [
        "SEEN.append(1)  # flowkit: stateless",
        "SEEN.append(1)  #flowkit:stateless - a memo",
        "note()  # flowkit: stateless",
        "CACHE['a'] = dict(\n    a=1,\n)  # flowkit: stateless",
        "with open('a', 'w') as file:  # flowkit: stateless\n    file.write('a')",
        "with open(\n    'a', 'w'\n) as file:  # flowkit: stateless\n    file.write('a')",
    ],
)
def test_a_line_that_is_meant_is_silent(tmp_path: Path, body: str) -> None:
    assert search(tmp_path, "def note():\n    SEEN.append(1)\n" + handler(body)) == []


def test_only_that_line_is_silent(tmp_path: Path) -> None:
    body = "if body:  # flowkit: stateless\n    SEEN.append(1)  # HERE\nSEEN.append(2)  # flowkit: stateless"
    [(line, _)] = search(tmp_path, handler(body))
    assert line.endswith("# HERE")


# ---------------------------------------------------------------- what cannot be read


def test_without_source_nothing_is_said(tmp_path: Path) -> None:
    space: dict[str, Any] = {}
    text = HEAD + handler("SEEN.append(1)\nSTATE.keep(1)\nlen(body)")
    exec(compile(text, "<stdin>", "exec"), space)
    assert found(space["app"]) == []
    made = module(tmp_path, text)
    (tmp_path / f"{made.__name__}.py").write_text("this is (no Python\n" * 90)
    assert found(made.app) == []
    (tmp_path / f"{made.__name__}.py").unlink()
    assert found(made.app) == []


def test_objects_that_are_not_what_they_seem(tmp_path: Path) -> None:
    text = """
class Proxy:
    def __getattr__(self, name): raise RuntimeError("unbound")
    @property
    def __class__(self): raise RuntimeError("unbound")
    @property
    def items(self): raise RuntimeError("unbound")

PROXY = Proxy()
"""
    text += handler("PROXY.items.append(1)\nPROXY.other.add(1)\nPROXY['a'] = 1\nPROXY(1)\nnext(PROXY)\nprint(PROXY)")
    assert search(tmp_path, text) == []


# ---------------------------------------------------------------- real apps


@pytest.mark.parametrize("name", ["examples.flights.flows", "examples.shop.flows"])
def test_the_examples_are_stateless(name: str) -> None:
    assert found(load(name)) == []


@pytest.mark.parametrize(
    ("name", "flow", "calls"),
    [("tests.async_app", "network.fetch", ()), ("tests.crash_app", "crash.accept", ("ran",))],
)
def test_the_notes_that_test_apps_write_are_found(name: str, flow: str, calls: tuple[str, ...]) -> None:
    noted = [trap for trap in found(load(name)) if "open('a')" in trap.what]
    assert [(trap.flow, trap.calls) for trap in noted] == [(flow, calls)]
