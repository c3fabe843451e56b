"""Fixtures of the tests of traces, metrics and logs."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _mails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_MAIL_DIR", str(tmp_path / "mail"))
    monkeypatch.delenv("SHOP_FLAKY_MAIL", raising=False)
