"""The simulation stands in for every module of the engine that has threads, a clock or a log: none escapes it."""

import importlib
import pkgutil
from types import ModuleType
from unittest.mock import Mock

import pytest

import flowkit.engine
from tests.simulation.fleet import stand_ins
from tests.simulation.mutants import MUTANTS

REPLACED = ("threading", "time", "gc", "subprocess", "_log", "WATCH_SECONDS")
"""Names that the simulation replaces wherever a module of the engine has them."""
NOT_SIMULATED = {
    "async_bridge": "the event loop is not simulated",
    "async_lane": "the event loop is not simulated",
    "blocking_calls": "the event loop is not simulated",
    "concurrency": "the event loop is not simulated",
    "handler_tasks": "the event loop is not simulated",
    "async_pipeline": "the event loop is not simulated",
}
"""Modules of handlers that are `async def`, and why the simulation does not run them."""
PLAIN = {
    "adoption", "dead_letter", "envelope", "failure", "figures", "item", "lane", "membership", "pipeline", "readiness",
    "relay", "staging",
}  # fmt: skip
"""Modules that the simulation runs as they are: they take their clock, store and transport from the constructor."""


REAL = {("pipeline", "threading"): "it only asks whether a handler runs on the main thread"}
"""Names that stay as they are, and why."""


def modules() -> dict[str, ModuleType]:
    names = [found.name for found in pkgutil.iter_modules(flowkit.engine.__path__)]
    return {name: importlib.import_module(f"flowkit.engine.{name}") for name in names}


def replaced() -> set[tuple[str, str]]:
    """The modules of the engine, and the names in them that the simulation replaces."""
    found = [(module.__name__, name) for module, name, _ in stand_ins(Mock(), Mock())]
    return {(module.rpartition(".")[2], name) for module, name in found if module.startswith("flowkit.engine.")}


def test_each_module_of_the_engine_is_stood_in_for_or_listed() -> None:
    patched = {module for module, _ in replaced()}
    assert patched | PLAIN | NOT_SIMULATED.keys() == modules().keys()
    assert not patched & PLAIN
    assert not patched & NOT_SIMULATED.keys()
    assert not PLAIN & NOT_SIMULATED.keys()


def test_no_thread_clock_or_log_of_a_simulated_module_is_the_real_one() -> None:
    simulated = {name: module for name, module in modules().items() if name not in NOT_SIMULATED}
    real = {(name, one) for name, module in simulated.items() for one in REPLACED if hasattr(module, one)}
    assert real - REAL.keys() <= replaced(), (
        "the simulation runs these as they are: see stand_ins() in tests/simulation/fleet.py"
    )


@pytest.mark.parametrize("name", MUTANTS)
def test_each_mutant_finds_what_it_breaks(name: str) -> None:
    """`patch.object` refuses a name that is not there any more."""
    with MUTANTS[name]():
        """It is there."""
