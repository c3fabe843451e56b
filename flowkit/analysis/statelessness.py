"""Warnings about state that handlers keep outside of the database: in a worker's memory, or in files of its host.

Names stand for the objects that they hold: `SEEN.add(id)` is reported if SEEN is a set; `METRIC.add(1)` is not.
Doubtful state is not reported: state behind another name, or in resources that `app.provide` makes for a worker.
`functools.cache` is not reported, because every worker can compute it again; neither are `threading.local` and
`ContextVar`, because they carry the context of a call.
"""

import ast
import codecs
import os
import re
import shelve
import shutil
import tempfile
import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple

from flowkit.analysis.source import CONTAINERS, FUNCTIONS, UNKNOWN, Source, is_a, layers, parameters
from flowkit.model.flow import Flow

DEPTH = 5
"""Depth to which nested calls are followed."""
CHANGES = (
    *("add", "append", "appendleft", "clear", "difference_update", "discard", "extend", "extendleft", "insert"),
    *("intersection_update", "move_to_end", "pop", "popitem", "popleft", "remove", "reverse", "rotate", "setdefault"),
    *("sort", "subtract", "symmetric_difference_update", "update"),
)
"""Methods that change a container."""
OPENS = (open, codecs.open)
FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
"""With any of these flags, `os.open` writes."""
WRITES = (
    *(os.mkdir, os.makedirs, os.remove, os.removedirs, os.rmdir, os.truncate, os.unlink),
    *(shutil.make_archive, shutil.rmtree),
)
MOVES = (
    *(os.link, os.rename, os.renames, os.replace, os.symlink),
    *(shutil.copy, shutil.copy2, shutil.copyfile, shutil.copytree, shutil.move, shutil.unpack_archive),
)
"""Functions that write to the path in their second argument."""
PATH_WRITES = ("hardlink_to", "mkdir", "rmdir", "symlink_to", "touch", "unlink", "write_bytes", "write_text")
PATH_MOVES = ("rename", "replace")
PATHS = (
    *("absolute", "cwd", "expanduser", "glob", "home", "iterdir", "joinpath", "resolve", "rglob"),
    *("with_name", "with_stem", "with_suffix"),
)
"""Methods of a path that return paths."""
NO_DATABASE_FILE = re.compile(r"|.*(:memory:|mode=memory|mode=ro\b).*")


class Trap(NamedTuple):
    """A line that keeps state where other workers do not find it, nor this worker after a crash."""

    file: str
    line: int
    flow: str
    calls: tuple[str, ...]
    """The calls from the handler to the function with this line."""
    what: str
    instead: str

    def __str__(self) -> str:
        file, here = Path(self.file), Path.cwd()
        shown = file.relative_to(here) if file.is_relative_to(here) else file
        flow = f"{self.flow}, by {' → '.join(self.calls)}" if self.calls else self.flow
        return f"{shown}:{self.line}: warning: flow {flow}: {self.what}; {self.instead}"


def traps(flow: Flow) -> list[Trap]:
    """The lines by which a handler, or a function that it calls in its package or folder, keeps state outside of the
    database. Functions without readable source have none. Blocks to read the source.
    """
    database = "work: UnitOfWork" if flow.concurrent else "db: Session"
    kept = f"keep it under a key with `objects: Objects`, or in a table with `{database}`"
    home = layers(flow.handler)[-1]
    found: set[Trap] = set()
    seen: set[tuple[FunctionType, frozenset[str]]] = set()
    todo: deque[tuple[object, frozenset[str], tuple[str, ...]]] = deque([(flow.handler, frozenset(), ())])
    while todo:
        called, temporary, calls = todo.popleft()
        for layer in layers(called):
            function = getattr(layer, "__func__", layer)
            if not isinstance(function, FunctionType) or not _near(function, home) or (function, temporary) in seen:
                continue
            seen.add((function, temporary))
            source = Source(function, getattr(layer, "__self__", UNKNOWN))
            for node in source.nodes():
                where = (source.file, getattr(node, "lineno", 0), flow.name, calls)
                if what := _remembers(source, node):
                    found.add(Trap(*where, f"{what} writes to the memory of this worker alone", kept))
                elif what := _writes(source, node, temporary):
                    files = f"{kept}, or use tempfile for files that the run deletes"
                    found.add(Trap(*where, f"{what} writes to the disk of this host alone", files))
                for one, given in _called(source, node, temporary) if len(calls) < DEPTH else ():
                    todo.append((one, given, (*calls, one.__qualname__.rpartition("<locals>.")[2])))
    return sorted(found)


def _near(function: FunctionType, home: Any) -> bool:
    """Whether a function is in the handler's package or folder: other authors answer for their packages."""
    code = getattr(home, "__code__", None)
    return str(function.__module__).partition(".")[0] == str(home.__module__).partition(".")[0] or (
        code is not None and Path(function.__code__.co_filename).parent == Path(code.co_filename).parent
    )


def _called(source: Source, node: ast.AST, temporary: frozenset[str]) -> Iterator[tuple[Any, frozenset[str]]]:
    """The functions that a node calls or passes on, and their parameters that get a temporary path."""
    if not isinstance(node, ast.Call):
        return
    callee = source.value(node.func)
    if is_a(callee, *FUNCTIONS):
        named = [(one.arg, one.value) for one in node.keywords if one.arg]
        named += zip(parameters(callee), node.args, strict=False)
        yield callee, frozenset(name for name, value in named if _is_temporary(source, value, temporary))
    for value in map(source.value, (*node.args, *(one.value for one in node.keywords))):
        if is_a(value, *FUNCTIONS):
            yield value, frozenset()


# ---------------------------------------------------------------- memory


def _remembers(source: Source, node: ast.AST) -> str:
    """The change of an object that outlives the run, as text; empty if the node makes none."""
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()) if name in source.rebound:
            changes = True
        case ast.Attribute(ctx=ast.Store() | ast.Del()) | ast.Subscript(ctx=ast.Store() | ast.Del()):
            changes = _lasts(source, node)
        case ast.Call(func=ast.Attribute(value=holder, attr=name)) if name in CHANGES:
            changes = is_a(source.value(holder), *CONTAINERS) or _is_kept(source, holder)
        case ast.Call(func=function, args=[holder, *_]):
            callee, value = source.value(function), source.value(holder)
            changes = is_a(value, Iterator) if callee is next else _among(callee, (setattr, delattr)) and _shared(value)
        case _:
            return ""
    deed = "" if isinstance(node, ast.Call) else "deleting " if isinstance(node.ctx, ast.Del) else "setting "
    return deed + _text(node) if changes else ""


def _lasts(source: Source, target: ast.expr) -> bool:
    """Whether an assignment's target is part of an object that outlives the run."""
    if not isinstance(target, ast.Attribute | ast.Subscript):
        return False
    holder = source.value(target.value)
    if holder is UNKNOWN:
        return _lasts(source, target.value)
    return is_a(holder, *CONTAINERS) if isinstance(target, ast.Subscript) else _shared(holder)


def _is_kept(source: Source, item: ast.expr) -> bool:
    """Whether an expression is a container, or a missing item, in a plain container that outlives the run."""
    if not isinstance(item, ast.Subscript):
        return False
    holder = source.value(item.value)
    if type(holder) not in (list, dict, defaultdict):
        return holder is UNKNOWN and _is_kept(source, item.value)
    if isinstance(holder, dict) and isinstance(item.slice, ast.Constant) and item.slice.value in holder:
        return is_a(holder[item.slice.value], *CONTAINERS)
    return not holder


def _shared(holder: object) -> bool:
    """Whether other runs see an attribute that is set on the object."""
    return holder is not UNKNOWN and not is_a(holder, threading.local)


# ---------------------------------------------------------------- files


def _writes(source: Source, node: ast.AST, temporary: frozenset[str]) -> str:
    """The change of a file or folder that is not temporary, as text; empty if the node makes none."""
    place = _place(source, node) if isinstance(node, ast.Call) else None
    return "" if place is None or _is_temporary(source, place, temporary) else _text(node)


def _place(source: Source, call: ast.Call) -> ast.expr | None:
    """The expression of the path that a call writes to; the call itself if only its keywords name it; else None."""
    callee = source.value(call.func)
    first, second = [*call.args, call, call][:2]
    if _among(callee, OPENS):
        return first if _for_writing(call, 1) else None
    if callee is os.open:
        flags = [*call.args[1:2], *(one.value for one in call.keywords if one.arg == "flags")]
        values = [source.value(node) for flag in flags for node in ast.walk(flag)]
        return first if any(isinstance(one, int) and one & FLAGS for one in values) else None
    if callee is shelve.open:
        flags = [*call.args[1:2], *(one.value for one in call.keywords if one.arg == "flag")]
        return None if any(isinstance(one, ast.Constant) and one.value == "r" for one in flags) else first
    if _among(callee, WRITES):
        return first
    if _among(callee, MOVES):
        return second
    if is_a(callee, BuiltinFunctionType) and callee.__name__ == "connect" and callee.__module__.endswith("sqlite3"):
        name = first.value if isinstance(first, ast.Constant) else None
        return None if isinstance(name, str) and NO_DATABASE_FILE.fullmatch(name) else first
    match call.func:
        case ast.Attribute(value=path, attr=name) if _is_path(source, path, set()):
            if name in PATH_MOVES:
                return first
            return path if name in PATH_WRITES or (name == "open" and _for_writing(call, 0)) else None
    return None


def _for_writing(call: ast.Call, position: int) -> bool:
    """Whether a call opens a file with a constant mode that writes."""
    modes = [*call.args[position : position + 1], *(one.value for one in call.keywords if one.arg == "mode")]
    return any(isinstance(one, ast.Constant) and not set("wax+").isdisjoint(str(one.value)) for one in modes)


def _is_path(source: Source, node: ast.AST, seen: set[str]) -> bool:
    match node:
        case ast.Name(id=name) if name in source.origins and name not in seen:
            seen.add(name)
            return any(_is_path(source, origin, seen) for origin in source.origins[name])
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _is_path(source, left, seen) or _is_path(source, right, seen)
        case ast.Attribute(value=path, attr="parent"):
            return _is_path(source, path, seen)
        case ast.Call(func=ast.Attribute(value=path, attr=name)) if name in PATHS:
            return _is_path(source, path, seen)
        case ast.Call(func=maker):
            return _is_path(source, maker, seen)
    value = source.value(node)
    kind = value if is_a(value, type) else type(value)
    return issubclass(kind, PurePath) and kind.__module__.startswith("pathlib")  # other classes may not be on this disk


def _is_temporary(source: Source, place: ast.expr, temporary: frozenset[str]) -> bool:
    """Whether a path is made by tempfile, or from a parameter that is."""
    for node in source.made_of(place):
        value = source.value(node)
        if value is tempfile or (is_a(value, FunctionType, type) and value.__module__ == "tempfile"):
            return True
        if isinstance(node, ast.Name) and node.id in temporary:
            return True
    return False


def _among(value: object, known: Iterable[object]) -> bool:
    return any(value is one for one in known)


def _text(node: ast.AST) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 60 else f"{text[:59]}…"
