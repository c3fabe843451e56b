"""What a proof says of effects outside of the directory that it compares, and what becomes of the real files."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flowkit import App
from flowkit.testing import CrashUnsafe, Harness, crash_everywhere
from flowkit.testing.crash import Proof, Unwatched
from flowkit.testing.scratch import COPIED_BYTES, Scratch

pytestmark = pytest.mark.processes


def prove(effect: Callable[[], object], **options: object) -> Proof:
    """Kill a worker, at some points, whose handler has this effect."""
    app = App("shop")
    app.flow(app.channel("orders", str), name="write")(lambda order: effect() and None)

    def scenario(harness: Harness) -> None:
        harness.publish("orders", "a")

    return crash_everywhere(app, scenario, points=4, **options)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a file."""
    made = tmp_path / "here"
    made.mkdir()
    (made / "log").write_text("before\n")
    monkeypatch.chdir(made)
    return made


def append(path: Path) -> int:
    with path.open("a") as log:
        return log.write("line\n")


def test_a_file_of_the_working_directory_is_compared_and_stays_as_it_is(folder: Path) -> None:
    with pytest.raises(CrashUnsafe, match=r"file \./log: missing content 'before\\nline\\n', surp") as unsafe:
        prove(lambda: append(Path("log")))
    assert unsafe.value.proof.unwatched == []
    assert (folder / "log").read_text() == "before\n"
    assert os.listdir(folder) == ["log"]
    assert Path.cwd() == folder


@pytest.mark.parametrize("deed", ["append", "absolute", "remove", "rename", "program", "connection"])
def test_what_a_flow_does_elsewhere_is_refused_before_it_is_done(folder: Path, deed: str) -> None:
    real = folder.parent / "real"
    real.write_text("before\n")
    deeds: dict[str, tuple[Callable[[], object], str]] = {
        "append": (lambda: append(real), f"file {real}"),
        "absolute": (lambda: append(folder / "log"), f"file {folder}/log"),
        "remove": (real.unlink, f"file {real}"),
        "rename": (lambda: real.rename(folder / "log"), f"file {real}"),
        "program": (lambda: subprocess.run([sys.executable, "-c", "1"], check=True), f"program {sys.executable}"),
        "connection": (connect, "connection to 127.0.0.1:9"),
    }
    effect, named = deeds[deed]
    with pytest.raises(Unwatched, match=r"name observe=") as refused:
        prove(effect)
    assert f"an effect that is not compared: {named} (at test_crash_elsewhere.py:" in str(refused.value)
    assert (real.read_text(), (folder / "log").read_text()) == ("before\n", "before\n")


def connect() -> None:
    import socket

    socket.create_connection(("127.0.0.1", 9), timeout=1)


def test_with_observe_the_verdict_says_what_is_not_watched(folder: Path) -> None:
    real = folder.parent / "real"
    proof = prove(lambda: real.write_text("once\n"), observe=real.exists)
    assert [one.partition(" (at ")[0] for one in proof.unwatched] == [f"file {real}"]
    assert f"not watched, but for what observe() returns: file {real} (at test_crash_elsewhere.py:" in str(proof)


def test_temporary_files_and_devices_are_nobodys_effect(folder: Path) -> None:
    import tempfile

    def effect() -> None:
        with tempfile.NamedTemporaryFile("w") as one, open(os.devnull, "w") as nothing:
            one.write("x")
            nothing.write("x")

    proof = prove(effect)
    assert (proof.escapes, proof.unwatched) == ([], [])


def test_a_directory_below_the_working_directory_is_written_to_as_it_is(folder: Path) -> None:
    with pytest.raises(CrashUnsafe, match=r"file log: missing content 'line\\n'"):
        prove(lambda: append(Path("out/log")), directory="out")
    assert (folder / "log").read_text() == "before\n"


def test_what_is_large_or_made_by_tools_is_linked(folder: Path) -> None:
    (folder / "large").write_bytes(bytes(COPIED_BYTES + 1))
    for name in (".git", "inner", "node_modules"):
        (folder / name).mkdir()
        (folder / name / "file").touch()
    scratch = Scratch(folder.parent / "copy", None)
    scratch.restore()
    assert {one.name for one in scratch.path.iterdir() if one.is_symlink()} == {"large", ".git", "node_modules"}
    assert scratch.written() == []
    (scratch.path / "inner" / "file").write_text("x")
    (scratch.path / "log").unlink()
    assert scratch.written() == [{"path": "./inner/file", "content": "x"}, {"path": "./log (gone)"}]
    scratch.restore()
    assert scratch.written() == []
    assert (folder / "inner" / "file").read_text() == ""
