"""The files under examples/deploy are what their readers take, by the schemas of these."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from flowkit.host.ending import MARGIN_SECONDS, REST_SECONDS
from tests.conftest import CI
from tests.support.manifests import DEPLOY, documents

KUBERNETES = "1.31"
TIMEOUT = re.compile(r"^TimeoutStopSec=(\d+)s$", re.MULTILINE)
KEDA = "keda.sh/v1alpha1"
"""Of no schema here."""


@pytest.mark.parametrize("document", documents(), ids=lambda one: one["kind"])
def test_kubernetes_takes_these(document: dict[str, Any]) -> None:
    if document["apiVersion"] != KEDA:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_what_kubernetes_is_told_fits_together() -> None:
    found = {one["kind"]: one for one in documents()}
    deployment, pods = found["Deployment"], found["Deployment"]["spec"]["template"]
    labels, container = pods["metadata"]["labels"], pods["spec"]["containers"][0]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert found["PodDisruptionBudget"]["spec"]["minAvailable"] < deployment["spec"]["replicas"]
    assert found["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    arguments = container["args"]
    seconds = {name: int(arguments[arguments.index(name) + 1].removesuffix("s")) for name in ("--grace", "--drain")}
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pods["spec"]["terminationGracePeriodSeconds"] > before + seconds["--grace"]
    probes = {container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert probes == {"/livez", "/readyz"}


def test_the_time_to_end_is_longer_than_flowkit_takes() -> None:
    """Or a supervisor that ends what hangs is killed before it has."""
    pods = next(one for one in documents() if one["kind"] == "Deployment")["spec"]["template"]["spec"]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["x-shop"]
    unit = (DEPLOY / "flowkit.service").read_text()
    before = int(pods["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    granted = [pods["terminationGracePeriodSeconds"] - before, compose["stop_grace_period"], *TIMEOUT.findall(unit)]
    commands = " ".join([*pods["containers"][0]["args"], compose["command"], unit])
    graces = [int(seconds) for seconds in re.findall(r"--grace (\d+)s", commands)]
    for seconds, grace in zip(granted, graces, strict=True):
        assert int(str(seconds).removesuffix("s")) > grace + MARGIN_SECONDS + REST_SECONDS


def test_the_service_may_do_little() -> None:
    """The exposure that systemd finds, in percent: an unhardened service has 92 to 96."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    command = [program, "security", "--offline=yes", "--threshold=25", "--no-pager", str(DEPLOY / "flowkit.service")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout


def test_the_balancer_gets_the_file_that_the_comment_says() -> None:
    """Docker Compose looks for it beside its own file, and makes a folder of this name where it finds none."""
    text = (DEPLOY / "compose.yaml").read_text()
    [written] = re.findall(r"> (\S+haproxy.cfg)", text)
    [mounted] = yaml.safe_load(text)["services"]["balancer"]["volumes"]
    assert DEPLOY / mounted.split(":")[0] == DEPLOY.parent.parent / written


def test_docker_takes_this(tmp_path: Path) -> None:
    if shutil.which("docker-compose") is None and not CI:
        pytest.skip("docker-compose is not installed: run tests/services/install")
    done = subprocess.run(
        ["docker-compose", "--file", DEPLOY / "compose.yaml", "config", "--quiet"],
        env={**os.environ, "PASSWORD": "secret"}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
