"""Fixtures of the tests of the command line."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.command_line import APP, Terminal


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the app, which is the working directory."""
    for name in [name for name in os.environ if name.startswith("FLOWKIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


@pytest.fixture
def flowkit(shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Terminal]:
    modules = set(sys.modules)
    yield Terminal(shop, monkeypatch, capsys)
    for name in set(sys.modules) - modules:
        if str(shop) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
