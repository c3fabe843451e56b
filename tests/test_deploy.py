"""The files under examples/deploy are what their readers take, by the schemas of these."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from tests.conftest import CI

DEPLOY = Path(__file__).parent.parent / "examples" / "deploy"
KUBERNETES = "1.31"
KEDA = "keda.sh/v1alpha1"
"""Of no schema here."""


def documents() -> list[dict[str, Any]]:
    return [
        one for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")) for one in yaml.safe_load_all(path.read_text())
    ]


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


def test_docker_takes_this(tmp_path: Path) -> None:
    if shutil.which("docker-compose") is None and not CI:
        pytest.skip("docker-compose is not installed: run tests/services/install")
    done = subprocess.run(
        ["docker-compose", "--file", DEPLOY / "compose.yaml", "config", "--quiet"],
        env={**os.environ, "PASSWORD": "secret"}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
