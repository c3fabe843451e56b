"""The code stays small and free of circles: files, classes and functions have limits, and each exception a reason.

`python -m tests.project.test_structure` prints what exceeds a limit today.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
CHECKED = ("flowkit", "connectors", "tests", "benchmarks", "examples")
FILE_LINES, METHODS, FUNCTION_LINES = 400, 20, 50

EXCEPTIONS = {
    "flowkit/app.py::App.flow": "its signature and the description of each argument take the lines",
    "flowkit/ports/store.py::Store": "twelve of its members hand out the nouns of the store",
    "flowkit/store/dialect.py::Dialect": "each difference of the databases is one small method",
    "flowkit/store/migrations/versions/0001_first.py::upgrade": "a released migration never changes",
    "flowkit/store/postgresql/dialect.py::PostgresDialect": "each difference of the databases is one small method",
    "flowkit/store/sqlite.py::SqliteDialect": "each difference of the databases is one small method",
    "flowkit/store/statements.py": "all statements of the store stand in one place, so that one reader can check them",
    "flowkit/testing/crash.py::crash_everywhere": "its signature and the description of each argument take the lines",
    "flowkit/transports/memory/transport.py::MemoryTransport": "it implements the whole port of transports",
    "tests/chaos/oracle.py::judge": "it reads as the list of what must hold after a run",
    "tests/fuzz/corpus.py": "each kind of hostile input is one small method",
    "tests/fuzz/corpus.py::Maker": "each kind of hostile input is one small method",
    "tests/simulation/broker.py::Link": "it stands in for all methods of the real link",
    "tests/simulation/mutants.py": "a table: each mutant is one entry",
    "tests/simulation/oracle.py::check": "it reads as the list of what must hold after a run",
    "tests/simulation/world.py::World": "each fault of the simulated world is one small method",
}
"""What may exceed a limit, and why: a file, a `file::Class` or `file::function`, or the modules of a circle. Delete a
line once the code keeps the limit: a line that is not needed fails."""


class Excess(NamedTuple):
    """A part of the code that exceeds a limit."""

    name: str
    size: int
    limit: str


def definitions(
    tree: ast.AST, path: str
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every class and function, also those inside of others, with its name."""
    for node in ast.iter_child_nodes(tree):
        name = path
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{path}{'.' if '::' in path else '::'}{node.name}"
            yield name, node
        yield from definitions(node, name)


def large(path: str, source: str) -> Iterator[Excess]:
    """What exceeds a limit in a file."""
    lines = source.count("\n")
    if lines > FILE_LINES:
        yield Excess(path, lines, f"lines in a file, of {FILE_LINES}")
    for name, node in definitions(ast.parse(source), path):
        if isinstance(node, ast.ClassDef):
            # The overloads of a method have its name.
            methods = {one.name for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
            if len(methods) > METHODS:
                yield Excess(name, len(methods), f"methods in a class, of {METHODS}")
        elif (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES:
            yield Excess(name, (node.end_lineno or 0) - node.lineno + 1, f"lines in a function, of {FUNCTION_LINES}")


def imported(tree: ast.AST, module: str, is_package: bool, modules: set[str]) -> Iterator[str]:
    """The modules that a module imports, at its top or in a function; not those that only types need."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from imported(other, module, is_package, modules)
        elif isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name in modules)
        elif isinstance(node, ast.ImportFrom):
            start = module.split(".")[: None if is_package and node.level == 1 else -(node.level - is_package)]
            base = ".".join([*(start if node.level else ()), *filter(None, [node.module])])
            for one in node.names:
                named = f"{base}.{one.name}"
                if named in modules or base in modules:
                    yield named if named in modules else base
        else:
            yield from imported(node, module, is_package, modules)


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules in which each one reaches each other one."""

    def reach(module: str) -> set[str]:
        found, todo = set[str](), [module]
        while todo:
            new = imports[todo.pop()] - found
            found |= new
            todo += new
        return found

    reached = {module: reach(module) for module in imports}
    groups = {
        tuple(sorted(other for other in found if module in reached[other]))
        for module, found in reached.items()
        if module in found
    }
    return [list(one) for one in sorted(groups)]


def of_package(root: Path) -> dict[str, set[str]]:
    """The imports between the modules of a package in a folder."""
    files = {}
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return {
        module: set(imported(ast.parse(file.read_text()), module, file.stem == "__init__", set(files))) - {module}
        for module, file in files.items()
    }


@cache
def excess() -> list[Excess]:
    """All that exceeds a limit."""
    found: list[Excess] = []
    for folder in CHECKED:
        for file in sorted((ROOT / folder).rglob("*.py")):
            found += large(file.relative_to(ROOT).as_posix(), file.read_text())
    for root in (ROOT / "flowkit", ROOT / "connectors" / "flowkit_connectors"):
        if root.exists():  # the tests of a wheel have no sources beside them
            found += [Excess(" ".join(one), len(one), "modules in a circle") for one in circles(of_package(root))]
    return found


def test_what_exceeds_a_limit_has_a_reason() -> None:
    strange = [one for one in excess() if one.name not in EXCEPTIONS]
    assert not strange, "make these smaller, or write their reason into EXCEPTIONS:\n" + table(strange)


def test_each_exception_is_needed_and_has_a_reason() -> None:
    needed = {one.name for one in excess()}
    here = [name for name in EXCEPTIONS if (ROOT / name.partition("/")[0].partition(".")[0]).exists()]
    unneeded = [name for name in here if name not in needed]
    assert not unneeded, "delete these lines from EXCEPTIONS:\n" + "\n".join(unneeded)
    assert all(EXCEPTIONS.values())


def test_a_file_a_class_and_a_function_have_limits() -> None:
    method = "    def m{}(self) -> None: ...\n"
    assert list(large("a.py", "x = 1\n" * FILE_LINES)) == []
    assert [one.name for one in large("a.py", "x = 1\n" * (FILE_LINES + 1))] == ["a.py"]
    assert list(large("a.py", "class A:\n" + "".join(method.format(n) for n in range(METHODS)))) == []
    many = "class A:\n" + "".join(method.format(n) for n in range(METHODS + 1))
    assert [one.name for one in large("a.py", many)] == ["a.py::A"]
    assert list(large("a.py", "def f():\n" + "    x = 1\n" * (FUNCTION_LINES - 1))) == []
    long = "class A:\n    async def f(self):\n" + "        x = 1\n" * FUNCTION_LINES
    assert [one.name for one in large("a.py", long)] == ["a.py::A.f"]


def test_a_circle_is_found_also_in_functions_and_not_in_types(tmp_path: Path) -> None:
    (tmp_path / "p" / "q").mkdir(parents=True)
    sources = {
        "__init__": "",
        "a": "from p.b import x",
        "b": "def f():\n    from .q import c",
        "q/__init__": "",
        "q/c": "if True:\n    from .. import a",
        "d": "import p.e",
        "e": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.d import y",
    }
    for name, source in sources.items():
        (tmp_path / "p" / f"{name}.py").write_text(source)
    assert circles(of_package(tmp_path / "p")) == [["p.a", "p.b", "p.q.c"]]


def table(found: list[Excess]) -> str:
    return "\n".join(f"{one.size:5}  {one.limit:28}  {one.name}" for one in found)


if __name__ == "__main__":
    print(table(excess()))
