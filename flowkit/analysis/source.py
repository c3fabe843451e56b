"""The source of a function, with the objects that its names hold once the app is imported. Nothing of it is run."""

import ast
import builtins
import contextlib
import functools
import inspect
import re
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterator, MutableMapping, MutableSequence, MutableSet
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

MEANT = re.compile(r"#\s*flowkit:\s*stateless\b")
UNKNOWN = object()
"""The value of names that are bound only while the function runs."""
CONTAINERS = (MutableMapping, MutableSequence, MutableSet)
FUNCTIONS = (FunctionType, MethodType, type(functools.cache(lambda: None)))


class Source:
    """The body of a function, and the objects of its names that outlive a run: globals, names of an enclosing function,
    the object of a method, mutable defaults.

    A name that the function or a nested function binds anywhere counts as local: warnings are missed rather than wrong.
    """

    def __init__(self, function: FunctionType, owner: object = UNKNOWN) -> None:
        code = function.__code__
        self.file = code.co_filename
        node, self._meant = _definition(code)
        self._statements = [] if node is None else node.body if isinstance(node.body, list) else [node.body]
        inside = list(ast.walk(node)) if node else []
        free = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        self.rebound = {name for one in inside if isinstance(one, ast.Global) for name in one.names}
        """Names of outer scopes that the body sets."""
        self.rebound |= {name for one in inside if isinstance(one, ast.Nonlocal) for name in one.names} & free.keys()
        own = {name for one in _codes(code) for name in one.co_varnames + one.co_cellvars}
        around = vars(builtins) | function.__globals__
        self._lasting = {name: value for name, value in around.items() if name not in own}
        for name, cell in free.items():
            with contextlib.suppress(ValueError):  # the cell is still empty
                self._lasting[name] = cell.cell_contents
        stored = {one.id for one in inside if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
        for parameter in inspect.signature(function, follow_wrapped=False).parameters.values():
            if is_a(parameter.default, *CONTAINERS) and parameter.name not in stored:
                self._lasting[parameter.name] = parameter.default
        if owner is not UNKNOWN and code.co_argcount:
            self._lasting[code.co_varnames[0]] = owner
        self.origins: dict[str, list[ast.expr]] = defaultdict(list)
        """Local name -> the expressions that it is bound to."""
        for one in inside:
            for name, origin in _bindings(one):
                self.origins[name].append(origin)

    def nodes(self) -> Iterator[ast.AST]:
        """All nodes of the body, without lines marked `# flowkit: stateless`. None if the source cannot be read."""
        for statement in self._statements:
            for node in ast.walk(statement):
                if self._meant.isdisjoint(_lines(node)):
                    yield node

    def value(self, node: ast.AST) -> Any:
        """The object that an expression stands for, if it exists before the run; else UNKNOWN."""
        match node:
            case ast.Name(id=name):
                return self._lasting.get(name, UNKNOWN)
            case ast.Attribute(value=holder, attr=name):
                return _attribute(self.value(holder), name)
            case ast.Subscript(value=holder):
                return _item(self.value(holder))
        return UNKNOWN

    def made_of(self, node: ast.AST) -> Iterator[ast.AST]:
        """The nodes of an expression, and of the expressions that its local names are bound to."""
        todo, seen = [node], set()
        while todo:
            for one in ast.walk(todo.pop()):
                yield one
                if isinstance(one, ast.Name) and one.id not in seen:
                    seen.add(one.id)
                    todo += self.origins.get(one.id, [])


def is_a(value: object, *kinds: type) -> bool:
    """`isinstance` by the real type. Proxies are not asked for `__class__`, because their code may fail."""
    return issubclass(type(value), kinds)


def layers(function: object) -> list[Any]:
    """A function and the functions that it wraps, from the outside in."""
    found: list[object] = []
    while function is not None and not any(function is one for one in found):
        found.append(function)
        function = getattr(function, "__wrapped__", None)
    return found


def parameters(function: object) -> list[str]:
    """The names of a function's positional parameters, without a bound `self`; empty if they are unknown."""
    inner = layers(function)[-1]
    code = getattr(inner, "__code__", None)
    return list(code.co_varnames[is_a(inner, MethodType) : code.co_argcount]) if code else []


def _definition(code: CodeType) -> tuple[ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | None, frozenset[int]]:
    """The definition of a function, and the lines of its file that are marked stateless."""
    try:
        tree, meant = _parsed("".join(inspect.findsource(code)[0]))
    except (OSError, SyntaxError, ValueError):
        return None, frozenset()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            if (node.name, first) == (code.co_name, code.co_firstlineno):
                return node, meant
        elif isinstance(node, ast.Lambda) and (node.lineno, code.co_name) == (code.co_firstlineno, "<lambda>"):
            return node, meant
    return None, meant


@functools.cache
def _parsed(text: str) -> tuple[ast.Module, frozenset[int]]:
    """A parsed file, and its lines that are marked stateless: each line with the comment, and all lines of a simple
    statement that contains it."""
    with warnings.catch_warnings(action="ignore"):  # the import has shown them
        tree = ast.parse(text)
    meant = {number for number, line in enumerate(text.splitlines(), 1) if MEANT.search(line)}
    for node in ast.walk(tree) if meant else ():
        simple = isinstance(node, ast.stmt) and not isinstance(node, ast.Match) and not hasattr(node, "body")
        if simple and not meant.isdisjoint(_lines(node)):
            meant.update(_lines(node))
    return tree, frozenset(meant)


def _lines(node: ast.AST) -> range:
    first = getattr(node, "lineno", 0)
    return range(first, (getattr(node, "end_lineno", None) or first) + 1) if first else range(0)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function, and of all functions in it."""
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _codes(one)


def _bindings(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    match node:
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=origin)
            | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as origin)
            | ast.NamedExpr(target=ast.Name(id=name), value=origin)
            | ast.withitem(optional_vars=ast.Name(id=name), context_expr=origin)
            | ast.For(target=ast.Name(id=name), iter=origin)
            | ast.comprehension(target=ast.Name(id=name), iter=origin)
            | ast.arg(arg=name, annotation=ast.expr() as origin)
        ):
            yield name, origin


def _attribute(holder: object, name: str) -> Any:
    """The attribute as it is stored: no property is run, and no module is loaded. UNKNOWN if it is computed."""
    if holder is UNKNOWN or is_a(holder, threading.local):
        return UNKNOWN
    if is_a(holder, ModuleType):
        return vars(holder).get(name, UNKNOWN)
    found = inspect.getattr_static(holder, name, UNKNOWN)
    if isinstance(found, FunctionType | classmethod | staticmethod):
        return found.__get__(None, holder) if isinstance(holder, type) else found.__get__(holder, type(holder))
    return UNKNOWN if hasattr(type(found), "__get__") else found


def _item(holder: Any) -> Any:
    """Any item of a plain container: a new one of a defaultdict, or the first one; else UNKNOWN."""
    if type(holder) not in (list, dict, defaultdict):
        return UNKNOWN
    if isinstance(holder, defaultdict) and holder.default_factory in (list, dict, set):
        return holder.default_factory()
    items = holder.values() if isinstance(holder, dict) else holder
    return next(iter(items), UNKNOWN)
