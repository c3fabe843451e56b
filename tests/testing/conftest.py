"""Fixtures of the tests of what FlowKit gives to tests of apps."""

from pathlib import Path

import pytest


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "files"
