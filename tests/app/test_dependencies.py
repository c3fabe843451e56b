"""The packages that FlowKit installs, their versions, and the internals of others that it relies upon."""

import inspect
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import flowkit
from tests.support import ROOT

NAME = "flowkit-runtime"
FOUND_BY_OTHERS = {"uvloop"}
"""Uvicorn takes its loop if it is there."""


def required(name: str, *extras: str) -> list[Requirement]:
    """The requirements of a package here, with these extras."""
    every = [Requirement(one) for one in metadata.requires(name) or ()]
    return [
        one
        for one in every
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    ]


def closure(name: str, *extras: str) -> dict[str, Requirement]:
    """All that comes with a package."""
    found: dict[str, Requirement] = {}
    todo = required(name, *extras)
    while todo:
        one = todo.pop()
        key = canonicalize_name(one.name)
        if key not in found:
            found[key] = one
            todo += required(key, *one.extras)
    return found


def pinned(file: str) -> dict[str, Version]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    return {canonicalize_name(name): Version(said) for name, said in (line.split("==") for line in lines if line)}


def at_oldest() -> bool:
    """Whether this environment is that of `make test-oldest`: packages of other versions need other packages."""
    return all(Version(metadata.version(name)) == version for name, version in pinned("oldest.txt").items())


NOT_AT_OLDEST = pytest.mark.skipif(at_oldest(), reason="the lowest versions need other packages")
DIRECT = [Requirement(one) for one in metadata.requires(NAME) or ()]


def test_every_dependency_has_a_lower_and_an_upper_bound() -> None:
    ours = [one for one in DIRECT if one.name != NAME]
    assert len(ours) > 10
    for one in ours:
        assert {bound.operator for bound in one.specifier} == {">=", "<"}, one
        assert metadata.version(one.name) in one.specifier, one


@NOT_AT_OLDEST
def test_nothing_is_installed_that_nothing_uses() -> None:
    needed = closure(NAME)
    assert needed.keys().isdisjoint({"watchfiles", "pyyaml", "websockets"})
    assert len(needed) <= 33, sorted(needed)
    code = "\n".join(file.read_text() for file in Path(flowkit.__file__).parent.rglob("*.py"))
    named = set(re.findall(r"(?:import |from |\"|')(\w+)", code))
    modules: dict[str, set[str]] = {}
    for module, packages in metadata.packages_distributions().items():
        for package in packages:
            modules.setdefault(canonicalize_name(package), set()).add(module)
    unused = {one.name for one in required(NAME) if not modules[canonicalize_name(one.name)] & named}
    assert unused == FOUND_BY_OTHERS


def test_uvicorn_finds_its_loop() -> None:
    import uvloop
    from uvicorn.loops.auto import auto_loop_factory

    assert auto_loop_factory() is uvloop.new_event_loop


@NOT_AT_OLDEST
def test_the_constraints_pin_all_that_is_installed_within_the_bounds() -> None:
    constraints, oldest = pinned("constraints.txt"), pinned("oldest.txt")
    needed = closure(NAME, "postgresql", "charts")
    assert needed.keys() - constraints.keys() == set()
    for one in DIRECT:
        name = canonicalize_name(one.name)
        if name == NAME:
            continue
        assert str(constraints[name]) in one.specifier, one
        (lowest,) = (Version(bound.version) for bound in one.specifier if bound.operator == ">=")
        if name in oldest:
            assert oldest[name] == lowest, f"{name}: the lower bound that is tested"


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_internals_of_pika_that_are_relied_upon_are_there() -> None:
    """`flowkit/transports/rabbitmq/connection.py` replaces methods that pika may change in any version."""
    from pika.adapters import asyncio_connection
    from pika.adapters.utils import io_services_utils
    from pika.channel import Channel, ContentFrameAssembler

    connection = asyncio_connection.AsyncioConnection
    relied = {
        "_proto_connection_made": ["self", "transport"],
        "_on_data_available": ["self", "data_in"],
        "_adapter_emit_data": ["self", "data"],
        "_process_frame": ["self", "frame_value"],
        "_terminate_stream": ["self", "error"],
    }
    for name, expected in relied.items():
        assert parameters(getattr(connection, name)) == expected, name
    source = "".join(inspect.getsource(one) for one in connection.__mro__ if one.__module__.startswith("pika"))
    for attribute in ("_nbio", "_channels", "_frame_buffer", "bytes_received", "_transport"):
        assert re.search(rf"self\.{attribute}\b[^=\n]*=", source), attribute
    for attribute in ("_consumers", "_cancelled", "_content_assembler"):
        assert re.search(rf"self\.{attribute}\b[^=\n]*=", inspect.getsource(Channel)), attribute
    assert "self._method_frame =" in inspect.getsource(ContentFrameAssembler)
    assert "self._sock =" in inspect.getsource(io_services_utils)
    assert "_MAX_RECV_BYTES" in inspect.getsource(io_services_utils)


def test_the_internals_of_uvicorn_that_are_relied_upon_are_there() -> None:
    """`flowkit/web/connection.py` extends uvicorn's connection, and reads what that keeps."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

    relied = {
        "connection_made": ["self", "transport"],
        "connection_lost": ["self", "exc"],
        "timeout_keep_alive_handler": ["self"],
        "pause_writing": ["self"],
        "resume_writing": ["self"],
        "data_received": ["self", "data"],
        "_unset_keepalive_if_required": ["self"],
        "on_message_begin": ["self"],
        "on_header": ["self", "name", "value"],
        "on_headers_complete": ["self"],
        "on_body": ["self", "body"],
        "on_message_complete": ["self"],
        "send_400_response": ["self", "msg"],
    }
    for name, expected in relied.items():
        assert parameters(getattr(HttpToolsProtocol, name)) == expected, name
    source = inspect.getsource(HttpToolsProtocol)
    for attribute in ("parser", "url", "headers", "pipeline", "cycle", "connections", "transport", "flow", "loop"):
        assert re.search(rf"self\.{attribute}\b[^=\n]*=", source), attribute
    for attribute in ("more_body", "response_complete", "keep_alive", "disconnected"):
        assert re.search(rf"self\.{attribute}\b[^=\n]*=", inspect.getsource(RequestResponseCycle)), attribute


def test_pika_is_taken_up_to_the_version_whose_internals_are_known() -> None:
    (pika,) = (one for one in DIRECT if one.name == "pika")
    assert "1.4.4" in pika.specifier
    assert "1.5" not in pika.specifier
