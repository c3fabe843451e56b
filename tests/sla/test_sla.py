"""The service level agreement: what it permits, what it needs, and which files are refused."""

import json
import subprocess
import sys
from itertools import pairwise, product
from math import isclose, prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.errors import ConfigError
from flowkit.sla import agreement, planning
from flowkit.sla.agreement import Agreement
from flowkit.sla.uptime import record

AGREED = """
availability = 99.9
[normal]
tps = 1000
response = "250ms"
[minimum]
tps = 100
response = "2s"
at_most = "10m"
[node]
tps = 750
fails_every = "30d"
repaired_in = "15m"
"""
TIERS = """
[tiers.broker]
nodes = 3
needed = 2
availability = 99.9
[tiers.balancer]
availability = 99.99
"""


def read(text: str, folder: Path) -> Agreement:
    (folder / "sla.toml").write_text(text)
    return agreement.read(folder / "sla.toml")


def flowkit(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "flowkit", "sla", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_permitted_downtime_is_that_of_the_usual_tables() -> None:
    done = flowkit("budget", "99", "99.5", "99.9", "99.99", "99.999", "--json")
    found = {one["availability"]: (one["per_week_s"], one["per_year_s"]) for one in json.loads(done.stdout)}
    hour, day = 3600, 86400
    expected = {
        99: (1.68 * hour, 3.65 * day),
        99.5: (50.4 * 60, 1.825 * day),
        99.9: (604.8, 8.76 * hour),
        99.99: (60.48, 52.56 * 60),
        99.999: (6.048, 5.256 * 60),
    }
    assert found.keys() == expected.keys()
    for availability, pair in expected.items():
        assert found[availability] == pytest.approx(pair), availability


def test_a_plan_has_the_nodes_for_high_availability_and_for_fault_tolerance(tmp_path: Path) -> None:
    (tmp_path / "sla.toml").write_text(AGREED + TIERS)
    found = json.loads(flowkit("plan", str(tmp_path / "sla.toml"), "--json").stdout)
    assert found["nodes"]["high_availability"] == 2
    assert found["nodes"]["fault_tolerance"] == {"1": 3, "2": 4, "3": 5}
    assert found["single_points_of_failure"] == ["balancer"]
    told = flowkit("plan", str(tmp_path / "sla.toml")).stdout
    assert "balancer is a single point of failure" in told
    assert "broker is a single" not in told


@given(nodes=st.integers(1, 7), needed=st.integers(0, 8), one_up=st.floats(0.01, 0.99))
def test_the_binomial_is_that_of_all_states_counted_one_by_one(nodes: int, needed: int, one_up: float) -> None:
    states = product([True, False], repeat=nodes)
    counted = sum(prod(one_up if one else 1 - one_up for one in state) for state in states if sum(state) < needed)
    assert isclose(planning.fewer(nodes, needed, one_up), counted, abs_tol=1e-12)


@given(
    normal=st.floats(1, 1e5),
    part=st.floats(0.001, 1),
    node=st.floats(200, 1e5),
    availability=st.floats(50, 99.999),
)
def test_more_nodes_never_miss_more(normal: float, part: float, node: float, availability: float) -> None:
    agreed = Agreement.model_validate(
        {
            "availability": 99.9,
            "normal": {"tps": normal, "response": "1s"},
            "minimum": {"tps": normal * part, "response": "1s", "at_most": "1h"},
            "node": {"tps": node, "availability": availability},
        }
    )
    plan = planning.plan(agreed)
    assert plan.for_normal * node >= normal
    assert (plan.for_normal - 1) * node < normal
    assert plan.high_availability >= plan.for_normal
    assert plan.high_availability - 1 >= plan.for_minimum
    choices = [plan.choices[nodes] for nodes in sorted(plan.choices)]
    for fewer, more in pairwise(choices):
        assert more.below_normal <= fewer.below_normal + 1e-12
        assert more.below_minimum <= fewer.below_minimum + 1e-12


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("availability = 99.9\n", ""), "availability is missing"),
        (("= 99.9", "= 100"), "availability: Input should be less than 100"),
        (("= 99.9", "= nan"), "availability: Input should be"),
        (("tps = 100\n", "tps = 2000\n"), "minimum.tps = 2000 is more than normal.tps = 1000"),
        (('"2s"', '"100ms"'), "minimum.response is shorter than normal.response"),
        (('"10m"', '"8d"'), "minimum.at_most is longer than the period"),
        (('"10m"', '"ten"'), "minimum.at_most: this duration is 'ten'"),
        (("tps = 750", "tps = 0"), "node.tps: Input should be greater than 0"),
        (('repaired_in = "15m"\n', ""), "node: write availability = 99.9, or both"),
        (('repaired_in = "15m"\n', 'repaired_in = "15m"\navailability = 99\n'), "node: write availability = 99.9"),
        (("tps = 1000", "tsp = 1000"), "normal.tsp is not a key of sla.toml"),
        (("[normal]", "[normal"), "is no TOML file"),
        (("[node]", "[tiers.broker]\nneeded = 2\navailability = 99\n[node]"), "needed = 2 of nodes = 1"),
    ],
)
def test_a_file_that_is_wrong_or_contradicts_itself_is_refused(
    change: tuple[str, str], said: str, tmp_path: Path
) -> None:
    assert change[0] in AGREED
    with pytest.raises(ConfigError) as caught:
        read(AGREED.replace(*change, 1), tmp_path)
    assert said in str(caught.value)
    assert "sla.toml" in str(caught.value)


def test_a_plan_of_very_many_nodes_is_exact_and_one_of_too_many_is_refused(tmp_path: Path) -> None:
    plan = planning.plan(read(AGREED.replace("tps = 750", "tps = 1.25"), tmp_path))
    assert plan.for_normal == 800
    assert 0 < plan.choices[803].below_normal < plan.choices[801].below_normal < 1
    with pytest.raises(ConfigError, match="takes 2,000 nodes; a plan is for 1,000 at most"):
        planning.plan(read(AGREED.replace("tps = 750", "tps = 0.5"), tmp_path))


def test_a_plan_that_nothing_keeps_says_so(tmp_path: Path) -> None:
    path = tmp_path / "sla.toml"
    path.write_text(AGREED.replace('at_most = "10m"', 'at_most = "1m"'))
    done, told = flowkit("plan", str(path)), json.loads(flowkit("plan", str(path), "--json").stdout)
    assert (done.returncode, told["kept_with"]) == (0, 3)
    assert "The agreement is kept with 3 nodes." in done.stdout
    path.write_text(AGREED.replace('repaired_in = "15m"', 'repaired_in = "40d"'))
    done, told = flowkit("plan", str(path)), json.loads(flowkit("plan", str(path), "--json").stdout)
    assert (done.returncode, told["kept_with"]) == (1, None)
    assert "kept with none of these" in done.stdout


def test_wrong_input_ends_with_a_sentence_and_exit_code_2(tmp_path: Path) -> None:
    for arguments in (["plan", str(tmp_path / "none.toml")], ["budget", "100"], ["budget", "0"], ["budget", "-1"]):
        done = flowkit(*arguments)
        assert done.returncode == 2, arguments
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


def test_whether_an_agreement_is_kept_counts_the_tiers(tmp_path: Path) -> None:
    alone = planning.plan(read(AGREED, tmp_path))
    assert alone.choices[alone.high_availability].kept
    weak = planning.plan(read(AGREED + "[tiers.database]\navailability = 99.5\n", tmp_path))
    assert not any(one.kept for one in weak.choices.values()), "no number of instances makes up for the database"


@pytest.mark.parametrize(
    ("uptime", "outages", "known"),
    [
        ([], [], 0),
        ([(100, 0)], [], 100),
        ([(100, 60), (50, 0)], [(60, 50)], 100),
        ([(100, 60), (90, 40), (38, 1)], [], 100),
        ([(100, 60), (90, 80), (40, 20)], [(60, 40), (20, 0)], 100),
        ([(5000, 2000), (900, 0)], [(1000, 900)], 1000),
        ([(5000, 2000), (1500, 0)], [], 1000),
        ([(5000, 2000)], [(1000, 0)], 1000),
    ],
)
def test_what_lies_between_the_times_that_a_service_was_up_is_an_outage(
    uptime: list[tuple[float, float]], outages: list[tuple[float, float]], known: float
) -> None:
    found = record(uptime, 1000, 99)
    assert (found.outages, found.seconds) == (outages, known)
    assert isclose(found.permitted, known / 100, rel_tol=1e-6, abs_tol=1e-9)
    assert found.kept == (sum(begin - end for begin, end in outages) <= known / 100)
