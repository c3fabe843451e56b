"""The files under examples/deploy."""

from typing import Any

import yaml

from tests.support import ROOT

DEPLOY = ROOT / "examples" / "deploy"


def documents() -> list[dict[str, Any]]:
    return [
        one for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")) for one in yaml.safe_load_all(path.read_text())
    ]
