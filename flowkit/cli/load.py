"""Finding the app that a command names."""

import _thread
import importlib
import importlib.util
import os
import select
import socket
import sys
import sysconfig
import time
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from traceback import extract_tb
from types import ModuleType

import flowkit
from flowkit.app import App
from flowkit.errors import DefinitionError, FlowKitError

MOST_PLACES, MOST_TEXT = 3, 500
PACKAGE = str(Path(flowkit.__file__).parent) + os.sep
GREEN = ("gevent", "eventlet")
"""Libraries that replace blocking functions in other modules."""
REPLACED = ((_thread, "start_new_thread"), (time, "sleep"), (socket, "socket"), (select, "select"))


def load(name: str) -> App:
    """Import the app of `shop.py`, `package.module` or `module:app`. Raises DefinitionError if there is none.

    Without `:app` it is the variable `app`, or the only App in the module. If the import fails, the error shows the
    place in five lines at most: see `_failure`.
    """
    target, _, attribute = name.partition(":")
    module = _load(target)
    if attribute:
        found = getattr(module, attribute, None)
        if not isinstance(found, App):
            raise DefinitionError(f"{target} has no App named {attribute}; write {attribute} = App(…) there")
        return found
    if isinstance(getattr(module, "app", None), App):
        usual: App = module.app
        return usual
    apps = {id(one): one for one in vars(module).values() if isinstance(one, App)}
    if len(apps) != 1:
        how_many = f"{len(apps)} apps, name one of them" if apps else "no App; write app = App(…) there, or name one"
        raise DefinitionError(f"{target} has {how_many}: {target}:app")
    return next(iter(apps.values()))


def refuse_green_threads(name: str) -> None:
    """Raise DefinitionError if an app, or one of its imports, has let a library replace threads, sockets or sleep.

    FlowKit's threads, and the database's driver, would wait for an event loop that does not run.
    """
    for module, attribute in REPLACED:
        library = getattr(module, attribute).__module__.partition(".")[0]
        if library in GREEN:
            raise DefinitionError(
                f"{name} lets {library} replace {module.__name__.lstrip('_')}.{attribute}, and no worker would run; "
                "leave out monkey patching where flows run, and write async def handlers for calls that wait"
            )


def load_function(name: str, function: str) -> Callable[..., object]:
    """A function of a loaded app's module, or of `tests.py:function`. Raises DefinitionError if there is none."""
    target, _, attribute = function.rpartition(":")
    app_target = name.partition(":")[0]
    loaded = sys.modules[Path(app_target).stem if app_target.endswith(".py") else app_target]
    module = _load(target) if target else loaded
    found = getattr(module, attribute, None)
    if not callable(found):
        raise DefinitionError(f"{target or app_target} has no function {attribute}; write def {attribute}(…) there")
    called: Callable[..., object] = found
    return called


def _load(target: str) -> ModuleType:
    try:
        return _from_file(Path(target)) if target.endswith(".py") else _from_name(target)
    except DefinitionError as error:
        raise DefinitionError("\n".join([str(error), *_places(error)[-MOST_PLACES:]])) from error
    except FlowKitError:
        raise
    except (Exception, SystemExit) as error:
        raise DefinitionError(_failure(target, error)) from error


def _failure(target: str, error: BaseException) -> str:
    """The text of an error that a module raised on import, with its last places in the user's code, or, if there are
    none, in libraries."""
    shown = _places(error)
    what = " ".join(str(error).split())
    if isinstance(error, SyntaxError) and error.text:
        what = error.msg
        shown.append(f"  {error.filename}, line {error.lineno}: {error.text.strip()}")
    said = f"{target} cannot be imported: {type(error).__name__}: {what[:MOST_TEXT]}"
    return "\n".join([said, *shown[-MOST_PLACES:], "fix it, and try again"])


def _places(error: BaseException) -> list[str]:
    """The lines of a traceback that are in the user's code, or, if there are none, in libraries; never in FlowKit."""
    places = [one for one in extract_tb(error.__traceback__) if not one.filename.startswith(("<frozen", PACKAGE))]
    others = tuple(sysconfig.get_path(one) for one in ("stdlib", "platstdlib", "purelib", "platlib"))
    return [
        f"  {one.filename}, line {one.lineno}, in {one.name}: {one.line}"
        for one in [one for one in places if not one.filename.startswith(others)] or places
    ]


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise DefinitionError(f"there is no file {path}; write a Python file, or module:app")
    if path.stem in sys.stdlib_module_names or path.stem == "flowkit":
        raise DefinitionError(f"{path} has the name of the module {path.stem}, which it would replace; rename the file")
    sys.path.insert(0, str(path.absolute().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _from_name(name: str) -> ModuleType:
    folder = os.getcwd()
    if _is_in(folder, name.partition(".")[0]):
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise DefinitionError(f"there is no module {name}; write a file such as shop.py, or module:app") from None


def _is_in(folder: str, package: str) -> bool:
    """Whether a folder has this module or package. A folder without __init__ counts if no other module has its name."""
    found = PathFinder.find_spec(package, [folder])
    return found is not None and (found.origin is not None or PathFinder.find_spec(package) is None)
