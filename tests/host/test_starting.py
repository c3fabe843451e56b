"""The start of an instance: what it does while the database goes away for a moment, and what a signal does to it."""

import os
import subprocess
import sys
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from flowkit.services import open_store
from flowkit.settings import Settings
from tests.services.postgresql import PostgreSQL
from tests.services.proxy import Proxy
from tests.support import ROOT
from tests.support.shop import Base

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]
RUN = [sys.executable, "-m", "flowkit", "run", "tests.support.children_app:app"]


@pytest.mark.parametrize(
    "statement",
    [b"pg_control_system", b"synchronous_commit", b"flowkit_version", b"flowkit_rollouts", b"active:children"],
)
def test_one_connection_that_is_cut_ends_no_start(
    postgresql: PostgreSQL, postgresql_url: str, statement: bytes
) -> None:
    store: Any = open_store(Settings(database_url=postgresql_url), check=False)
    store.schema.upgrade()
    Base.metadata.create_all(store.dialect.engine)
    store.close()
    with Proxy("127.0.0.1", postgresql.port) as proxy:
        url = make_url(postgresql_url).set(port=proxy.port).render_as_string(hide_password=False)
        proxy.cut_when(statement, forward=True)
        ran = subprocess.run(
            [*RUN, "--until-idle"],
            env={**os.environ, "FLOWKIT_DATABASE_URL": url, "PYTHONPATH": str(ROOT)},
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        assert proxy.cuts >= 1
        assert "cannot start yet" in ran.stderr
