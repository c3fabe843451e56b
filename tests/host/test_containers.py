"""FlowKit as process 1 of a container, started as the files under examples/deploy say."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from flowkit.services import open_store
from flowkit.settings import Settings
from tests.conftest import CI
from tests.services import container, free_port
from tests.services.container import Container
from tests.support import ROOT
from tests.support.children_app import app
from tests.support.instances import request
from tests.support.manifests import documents
from tests.support.shop import Base
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]
Start = Callable[[list[str], Mapping[str, str]], Container]


@pytest.fixture
def start() -> Iterator[Start]:
    if not container.possible() and not CI:
        pytest.skip("no container can be made here: that needs Linux, util-linux and root")
    made: list[Container] = []

    def begin(arguments: list[str], environment: Mapping[str, str]) -> Container:
        command = [sys.executable, "-m", "flowkit", *arguments]
        made.append(Container(command, {**os.environ, "PYTHONPATH": str(ROOT), **environment}, ROOT))
        return made[-1]

    yield begin
    for one in made:
        one.close()


def manifest() -> dict[str, Any]:
    """The container of the shop."""
    [deployment] = [one for one in documents() if one["kind"] == "Deployment"]
    found: dict[str, Any] = deployment["spec"]["template"]["spec"]["containers"][0]
    return found


def test_the_pod_serves_reaps_what_handlers_leave_and_ends_in_order(start: Start, postgresql_url: str) -> None:
    security = manifest()["securityContext"]
    assert (security["readOnlyRootFilesystem"], security["runAsNonRoot"]) == (True, True), "as containers are here"
    store: Any = open_store(Settings(database_url=postgresql_url), check=False)
    assert start(["db", "upgrade"], {"FLOWKIT_DATABASE_URL": postgresql_url}).process.wait(60) == 0
    Base.metadata.create_all(store.dialect.engine)
    port = free_port()
    places = {
        "flowkit": "",
        "shop.py": "tests.support.children_app:app",
        "0.0.0.0:8080": f"127.0.0.1:{port}",
        "5s": "0s",
    }
    arguments = [places.get(one, one) for one in manifest()["args"]]
    pod = start([one for one in arguments if one], {"FLOWKIT_DATABASE_URL": postgresql_url})
    wait_until(lambda: pod.process.poll() is not None or is_ready(port))
    assert pod.process.poll() is None, pod.process.communicate()[0]
    for number in range(3):
        content = json.dumps({"name": str(number), "deed": "orphan"}).encode()
        assert request(port, "POST", "/pages", content)[0] == 202
    wait_until(lambda: store.ledger.unfinished(list(app.flows)) == 0)
    wait_until(lambda: pod.zombies == 0)
    assert pod.end() == 0
    store.close()


def is_ready(port: int) -> bool:
    try:
        return request(port, "GET", "/readyz")[0] == 200
    except OSError:
        return False


def test_sigterm_ends_a_container_while_the_app_is_imported(start: Start) -> None:
    pod = start(["run", "tests.support.slow_app:app"], {})
    assert pod.process.stdout is not None
    assert pod.process.stdout.readline() == "importing\n"
    assert pod.end() == 128 + signal.SIGTERM
