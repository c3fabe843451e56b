"""Rollouts of instances behind a real balancer, under load."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.balancer import Balancer
from tests.support import ROOT
from tests.support.instances import SECONDS, Clients, before
from tests.support.versions import Deployed
from tests.support.waiting import wait_until

pytestmark = pytest.mark.migrated


@pytest.fixture
def deployed(postgresql_url: str) -> Iterator[Deployed]:
    with contextlib.closing(Deployed(postgresql_url)) as made:
        yield made


@pytest.fixture
def haproxy() -> Iterator[tuple[str, Balancer]]:
    with contextlib.closing(Balancer("haproxy")) as made:
        yield "haproxy", made


@pytest.mark.processes
@pytest.mark.postgresql
@pytest.mark.timeout(300)
def test_a_candidate_is_promoted_under_load(deployed: Deployed, haproxy: tuple[str, Balancer]) -> None:
    old = [deployed.start("--version", "v1") for _ in range(2)]
    wait_until(lambda: all(map(deployed.ready, old)))
    new = deployed.start("--version", "v2")
    clients = Clients(before(haproxy, [*old, new]).port)
    wait_until(lambda: deployed.states() == ["ready", "ready", "waiting"])
    assert not deployed.ready(new), "it has no share"
    for words in (("start", "v2", "--weight", "5"), ("shift", "25"), ("promote",)):
        clients.go_on()
        done = deployed.flowkit(*words)
        assert done.returncode == 0, done.stderr
    told = json.loads(deployed.flowkit("status", "--json").stdout)
    assert {one["name"]: one["role"] for one in told["versions"]} == {"v2": "baseline", "v1": "drained"}
    wait_until(lambda: deployed.ready(new))
    assert [deployed.end(port) for port in old] == [0, 0]
    clients.go_on()
    deployed.check_versions(clients)


@pytest.mark.processes
@pytest.mark.postgresql
@pytest.mark.timeout(300)
def test_a_bad_candidate_is_rolled_back_by_itself(deployed: Deployed, haproxy: tuple[str, Balancer]) -> None:
    ports = deployed.both("bad")
    clients = Clients(before(haproxy, ports).port)
    clients.go_on()
    done = deployed.flowkit("start", "bad", "--weight", "25", "--auto", "--steps", "50", "--every", "50s")
    assert done.returncode == 1, done.stderr
    assert "of its messages fail" in done.stdout
    clients.go_on()
    deployed.check_versions(clients)
    assert {version for found in deployed.by().values() for version in found} == {"v1", "bad"}


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_a_good_candidate_is_promoted_by_itself(sqlite_url: str) -> None:
    with contextlib.closing(Deployed(sqlite_url)) as deployed:
        ports = deployed.both("v2")
        clients = Clients(ports[0], 2)
        done = deployed.flowkit("start", "v2", "--weight", "50", "--auto", "--steps", "50,100", "--every", "3s")
        assert done.returncode == 0, done.stderr
        assert "version v2 has 100 %" in done.stdout
        wait_until(lambda: deployed.states() == ["ready", "waiting"])
        assert deployed.ready(ports[1])
        clients.stop()
        assert not {one for one in clients.failed if not one.startswith("503")}, "v1 takes no more in the end"
        assert deployed.store.rollouts.read("front", 30).baseline == "v2"


@pytest.mark.processes
def test_a_flow_that_receives_from_elsewhere_needs_another_name(sqlite_url: str, tmp_path: Path) -> None:
    code = (ROOT / "tests" / "support" / "version_app.py").read_text().replace('"/orders"', '"/v2/orders"')
    (tmp_path / "moved.py").write_text(code)
    with contextlib.closing(Deployed(sqlite_url)) as deployed:
        deployed.start("--version", "v1")
        wait_until(lambda: deployed.states() == ["ready"])
        deployed.app = str(tmp_path / "moved.py")
        port = deployed.start("--version", "v2")
        assert deployed.running.pop(port).wait(SECONDS) == 2
        assert deployed.store.subscribers.channels()["front.accept"] == "POST /orders"
