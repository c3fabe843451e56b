"""Runs the tests of the failures with the full numbers: python -m tests.proof.shown --json FILE."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from tests.proof.rows import ROOT, WAITS, shown

OPTIONS = ("-p", "no:cacheprovider", "-m", "", "-k", "test_row", "--numprocesses=2", "--dist=worksteal")


def run(tests: Path = ROOT / "tests") -> tuple[dict[str, dict[str, float]], int]:
    """Run them. Returns how many cases of each test passed, or what else, and seconds; and pytest's status. Blocks."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        status = subprocess.run(
            [sys.executable, "-m", "pytest", tests, *OPTIONS, f"--junitxml={report}"],
            cwd=ROOT, env={**os.environ, "CI": "true", "FLOWKIT_PROOF": "true"}, check=False,
        ).returncode  # fmt: skip
        cases = ElementTree.parse(report).getroot().iter("testcase")
        found: dict[str, Counter[str]] = {}
        for case in cases:
            one = found.setdefault(case.attrib["name"].partition("[")[0], Counter())
            wrong = [part.tag for part in case if part.tag in ("failure", "error", "skipped")]
            one[wrong[0] if wrong else "passed"] += 1
            one["milliseconds"] += round(1000 * float(case.attrib["time"]))
    return {name: {"seconds": one.pop("milliseconds") / 1000, **one} for name, one in sorted(found.items())}, status


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proof.shown", description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    found, status = run()
    options.json.write_text(json.dumps({"tests": found}, indent=1) + "\n")
    passed = {name for name, one in found.items() if one.keys() == {"passed", "seconds"}}
    left = [
        f"row {number}: no test of it passed"
        for number, tests in shown().items()
        if number not in WAITS and not any(test.partition("::")[2] in passed for test in tests)
    ]
    wrong = [f"{name}: {one}" for name, one in found.items() if name not in passed]
    print("\n".join([*wrong, *left]))
    return status or int(bool(wrong or left))


if __name__ == "__main__":
    sys.exit(main())
