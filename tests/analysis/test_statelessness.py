"""`flowkit check` warns of what handlers keep in a worker's memory or in local files, and of nothing else."""

import re
from pathlib import Path

import pytest

from tests.support.sources import handler, search

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
