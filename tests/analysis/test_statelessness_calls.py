"""`flowkit check` follows the functions that a handler calls, and can be silenced for a line."""

from pathlib import Path
from typing import Any

import pytest

from flowkit.cli.load import load
from tests.support.sources import HEAD, found, handler, module, search

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
    [("tests.support.async_app", "network.fetch", ()), ("tests.support.crash_app", "crash.accept", ("ran",))],
)
def test_the_notes_that_test_apps_write_are_found(name: str, flow: str, calls: tuple[str, ...]) -> None:
    noted = [trap for trap in found(load(name)) if "open('a')" in trap.what]
    assert [(trap.flow, trap.calls) for trap in noted] == [(flow, calls)]
