"""The fuzz, small: what `make fuzz` does with 50,000 inputs for each transport."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flowkit.ports import Claim
from flowkit.store.unit import SqlUnit
from tests.fuzz.corpus import Input, corpus, fingerprint
from tests.fuzz.replay import Result, in_memory, in_process
from tests.support import ROOT

SEED = 48
INPUTS = 5000


@pytest.fixture(scope="module")
def inputs() -> list[Input]:
    return corpus(SEED, INPUTS)


def check(inputs: Sequence[Input], result: Result) -> None:
    """Nothing is unaccounted for, and every kind of input and every end occurred."""
    verdict = result.verdict
    assert verdict.faults == []
    assert verdict.vacuous() == []
    assert verdict.ends.total() == len(inputs) + 1, "and the good one after them"


def test_row_48_the_corpus_through_a_broker_in_memory(inputs: list[Input]) -> None:
    check(inputs, in_memory(inputs))


@pytest.mark.processes
def test_row_48_the_corpus_through_sqlite(inputs: list[Input], sqlite_url: str, tmp_path: Path) -> None:
    check(inputs, in_process(inputs, tmp_path, sqlite_url))


@pytest.mark.processes
def test_row_48_the_corpus_through_postgresql(inputs: list[Input], postgresql_url: str, tmp_path: Path) -> None:
    check(inputs, in_process(inputs, tmp_path, postgresql_url))


@pytest.mark.processes
def test_row_48_the_corpus_through_rabbitmq(
    inputs: list[Input], postgresql_url: str, rabbitmq_url: str, tmp_path: Path
) -> None:
    check(inputs, in_process(inputs, tmp_path, postgresql_url, rabbitmq_url))


@pytest.mark.parametrize(
    ("step", "broken", "said"),
    [
        ("claim", lambda unit, deliveries: {one.identity: Claim() for one in deliveries}, "2 times"),
        ("bury", lambda unit, letters: None, "lost"),
        ("count", lambda unit, tallies: None, "does not add up"),
        ("remove", lambda unit, rows: None, "rows are left"),
    ],
)
def test_the_oracle_sees_what_a_broken_engine_does(
    step: str, broken: Callable[..., Any], said: str, inputs: list[Input], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SqlUnit, step, broken)
    assert any(said in fault for fault in in_memory(inputs[:500]).verdict.faults)


def test_a_seed_makes_the_same_corpus_in_every_process(inputs: list[Input]) -> None:
    program = f"from tests.fuzz.corpus import *; print(fingerprint(corpus({SEED}, {INPUTS})))"
    command = [sys.executable, "-c", program]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert made.stdout.strip() == fingerprint(inputs)
    assert fingerprint(corpus(SEED + 1, INPUTS)) != fingerprint(inputs)
