"""The import path of FlowKit's processes: the app's folder, where the app is there, and never the working directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

APP = """
import helper
from flowkit import App

app = App("shop")
app.flow(app.channel("numbers", int), name="take")(lambda number: None)
"""
PLANTED = """
import pathlib
pathlib.Path(__file__).with_name("ran").write_text(__name__)
raise ImportError("planted")
"""
NAMES = ("typer", "rich", "uvicorn", "pydantic", "sqlalchemy", "flowkit", "helper")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """The folder of an app, which imports a module beside it."""
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "shop.py").write_text(APP)
    (folder / "helper.py").touch()
    return folder


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder in which anybody may write."""
    folder = tmp_path / "planted"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(PLANTED)
    return folder


def run(folder: Path, *arguments: str, path: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a command as the script `flowkit` does: without the working directory on the path."""
    database = f"sqlite:///{folder.parent}/flowkit.db"
    environment = {**os.environ, "PYTHONPATH": path, "FLOWKIT_DATABASE_URL": database}
    command = [sys.executable, "-P", "-m", "flowkit", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.processes
@pytest.mark.parametrize("way", ["file", "module"])
def test_what_lies_in_the_working_directory_does_not_run(app: Path, planted: Path, way: str) -> None:
    name = str(app / "shop.py") if way == "file" else "shop:app"
    path = str(app) if way == "module" else ""
    ended = run(planted, "run", name, "--until-idle", "--http", "127.0.0.1:0", path=path)
    assert not (planted / "ran").exists(), (planted / "ran").read_text()
    assert ended.returncode == 0, ended.stderr


@pytest.mark.processes
@pytest.mark.parametrize("name", ["shop:app", "shop.py"])
def test_an_app_of_the_working_directory_is_found_with_what_is_beside_it(app: Path, name: str) -> None:
    ended = run(app, "run", name, "--until-idle")
    assert ended.returncode == 0, ended.stderr


def test_a_package_without_an_init_in_the_working_directory_hides_no_installed_one(app: Path, tmp_path: Path) -> None:
    """Python takes such a folder for a package only where nothing else has the name."""
    (tmp_path / "other" / "shop").mkdir(parents=True)
    (tmp_path / "other" / "helper.py").write_text(PLANTED)
    assert run(tmp_path / "other", "check", "shop", path=str(app)).returncode == 0
    assert not (tmp_path / "other" / "ran").exists()
