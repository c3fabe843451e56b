"""`make attack`: what did not hold is told, and attackers are bounded."""

import sys
import time

import pytest

from benchmarks.attack import __main__ as attack
from benchmarks.attack.attackers import SHARE, Pace
from benchmarks.attack.verdict import Verdict


@pytest.mark.parametrize("held", [True, False])
def test_the_exit_code_says_whether_all_held(
    held: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts = [Verdict("one", "this", "that", True), Verdict("other", "this", "that", held)]
    monkeypatch.setattr(attack, "run", lambda parts: verdicts)
    monkeypatch.setattr(sys, "argv", ["attack"])
    assert attack.main() == (0 if held else 1)
    assert ("did not hold" in capsys.readouterr().out) is not held


def test_an_attacker_keeps_its_share_of_the_cpu() -> None:
    began, used = time.monotonic(), time.process_time()
    pace = Pace(1)
    while time.process_time() - used < 0.02:
        sum(range(1000))
    pace.keep()
    assert pace.deeds == 1
    assert time.process_time() - used <= (time.monotonic() - began) * SHARE * 1.5
