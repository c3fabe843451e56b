"""The availability for clients while instances die, are replaced, or fail over: `make availability`.

Each event hits real instances behind a real HAProxy, under a steady open-loop load. Answers and their times are
measured at the client, and effects and their times in the database.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from benchmarks.availability_app import Applied, Base
from benchmarks.contender import Place
from benchmarks.database import Database, circumstances, databases
from benchmarks.disk import Disk
from flowkit.engine.versions import bucket
from flowkit.message import Message
from flowkit.services import open_store
from flowkit.settings import Settings
from flowkit.sla.load import Answer, Load, Request, during, percentile
from flowkit.sla.testbed import HOST, Node, Testbed, wait_until

RESULTS = Path(__file__).parent / "results" / "availability.json"
APP = "benchmarks.availability_app:app"
REQUEST = Request("POST", "/orders", '{"number": {n}}')
RATE = 100.0
"""Requests a second."""
CALM_SECONDS = 4.0
SLICE_SECONDS = 0.5
STEP_SECONDS = 3.0
"""Of a rollout, at the least."""
NORMAL_TIMES = 3.0
"""A response time is back to normal at so many times what it was before."""
LEASE_SECONDS = 3.0


class Stage:
    """A store, its servers, and what took effect there."""

    def __init__(self, place: Place) -> None:
        self.environment = {"FLOWKIT_DATABASE_URL": place.database, "FLOWKIT_BROKER_URL": place.broker}
        self._store: Any = open_store(Settings(database_url=place.database), check=False)
        self._store.schema.upgrade()
        Base.metadata.create_all(self._store.dialect.engine)

    def node(self, *options: str) -> Node:
        return Node(APP, options, self.environment)

    def applied(self) -> dict[str, list[tuple[float, str]]]:
        """id -> when, and at which version, it took effect, each time."""
        found: dict[str, list[tuple[float, str]]] = {}
        with Session(self._store.dialect.engine) as session:
            for id, at, version in session.execute(select(Applied.id, Applied.at, Applied.version)):
                found.setdefault(id, []).append((at, version))
        return found

    def rollout(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """A command of `flowkit rollout`."""
        return subprocess.run(
            [sys.executable, "-m", "flowkit", "rollout", *words],
            env={**os.environ, **self.environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def begin(self, version: str) -> None:
        """Let a version be the baseline, whichever instance comes first."""
        self._store.rollouts.enter("availability", version, LEASE_SECONDS)

    def ready(self) -> int:
        return sum(one.state in ("ready", "waiting") for one in self._store.ledger.workers())

    def spares(self) -> int:
        """How many instances wait for their turn."""
        return sum(one.state == "spare" for one in self._store.ledger.workers())

    def settle(self) -> None:
        wait_until(
            lambda: self._store.ledger.unfinished(["availability.accept"]) == 0, "the flows did not come to an end"
        )

    def close(self) -> None:
        self._store.close()


def balance(stage: Stage, load: Load, answers: Sequence[Answer]) -> dict[str, Any]:
    """What became of all that was sent."""
    stage.settle()
    applied = stage.applied()
    good = [one for one in answers if one.good]
    return {
        "requests": len(answers),
        "failed_after_a_retry": len(answers) - len(good),
        "sent_twice": sum(one.tries > 1 for one in answers),
        "lost": sum(one.id not in applied for one in good),
        "twice": sum(len(times) > 1 for times in applied.values()),
        "p99_ms": round(percentile([one.took for one in good], 99) * 1e3, 1),
        "longest_until_applied_s": round(
            max(applied[one.id][0][0] - load.epoch - one.due for one in good if one.id in applied), 2
        ),
    }


def back_to_normal(answers: Sequence[Answer], events: Sequence[float]) -> float:
    """Seconds from an event until the response time at 99 %, in slices of half a second, is no more than NORMAL_TIMES
    what it was before. The requests of a slice are those of all events: the few of one would have no 99 %."""

    def at_99(begin: float, seconds: float) -> float:
        return percentile(
            [one.took for event in events for one in during(answers, event + begin, event + begin + seconds)], 99
        )

    usual = at_99(-CALM_SECONDS, CALM_SECONDS)
    starts = [number * SLICE_SECONDS for number in range(int(CALM_SECONDS / SLICE_SECONDS))]
    slow = [start for start in starts if at_99(start, SLICE_SECONDS) > NORMAL_TIMES * usual]
    return slow[-1] + SLICE_SECONDS if slow else 0.0


def killed(database: Database, times: int) -> dict[str, Any]:
    """One of three instances is killed with -9, and started again, so many times."""
    stage = Stage(database.fresh())
    nodes = [stage.node() for _ in range(3)]
    with Testbed(nodes) as testbed, Disk() as disk:
        load, events = Load(HOST, testbed.port, REQUEST, RATE), []
        for number in range(times):
            time.sleep(CALM_SECONDS)
            events.append(load.now)
            nodes[number % 3].kill()
            time.sleep(CALM_SECONDS)
            nodes[number % 3].start()
            wait_until(lambda: all(node.ready for node in nodes), "an instance is not ready")
        answers = load.stop()
        found = balance(stage, load, answers)
    stage.close()
    free = [one for one in answers if not disk.stalled(load.began + one.due, load.began + one.due + one.took)]
    return {
        "kills": times,
        "back_to_normal_s": back_to_normal(answers, events),
        "back_to_normal_without_stalls_of_the_disk_s": back_to_normal(free, events),
        "requests_in_stalls_of_the_disk": len(answers) - len(free),
        "stalls_of_the_disk": len(disk.stalls),
        "longest_stall_of_the_disk_ms": round(max((end - begin for begin, end in disk.stalls), default=0.0) * 1e3),
        **found,
    }


def restarted(database: Database, times: int) -> dict[str, Any]:
    """All of three instances are ended in order and started again, one by one, so many times."""
    stage = Stage(database.fresh())
    nodes = [stage.node() for _ in range(3)]
    with Testbed(nodes) as testbed:
        load = Load(HOST, testbed.port, REQUEST, RATE)
        for _ in range(times):
            for node in nodes:
                node.end()
                node.start()
                wait_until(lambda: node.ready, "an instance is not ready")  # noqa: B023
        found = balance(stage, load, load.stop())
    stage.close()
    return {"rolling_restarts": times, **found}


def taken_over(database: Database, times: int, standby: str) -> dict[str, Any]:
    """The active instance is killed, and another one, that is spare, takes over; so many times. For each: from the kill
    to the first answer of the other one."""
    stage = Stage(database.fresh())
    nodes = [stage.node("--group", group, "--standby", standby) for group in ("one", "two")]
    takeovers = []
    with Testbed(nodes, ready=1) as testbed:
        load = Load(HOST, testbed.port, REQUEST, RATE)
        for _ in range(times):
            wait_until(lambda: stage.spares() == 1, "no instance is spare")
            active, spare = sorted(nodes, key=lambda node: not node.ready)
            time.sleep(1)
            began = time.monotonic()
            active.kill()
            wait_until(lambda: spare.ready, "nobody takes over")  # noqa: B023
            takeovers.append(time.monotonic() - began)
            active.start()  # and finds the other one active
        found = balance(stage, load, load.stop())
    stage.close()
    return {
        "standby": standby,
        "lease_s": LEASE_SECONDS,
        "takeovers": times,
        "longest_s": round(max(takeovers), 2),
        "median_s": round(statistics.median(takeovers), 2),
        **found,
    }


def started(database: Database, times: int) -> dict[str, Any]:
    """Cold: nothing runs, and an instance is started. From that to its first answer, so many times."""
    stage = Stage(database.fresh())
    seconds = []
    for _ in range(times):
        node = stage.node()
        began = time.monotonic()
        node.start()
        wait_until(lambda: node.ready, "an instance is not ready")  # noqa: B023
        seconds.append(time.monotonic() - began)
        node.kill()
    stage.close()
    return {"starts": times, "longest_s": round(max(seconds), 2), "median_s": round(statistics.median(seconds), 2)}


def rolled_out(database: Database, times: int) -> dict[str, Any]:
    """Another version gets 25 % and is rolled back; it gets 5, then 25, then 100 % of the messages and is promoted."""
    stage = Stage(database.fresh())
    stage.begin("v1")
    nodes = [stage.node("--version", version) for version in ("v1", "v1", "v2")]
    steps: list[tuple[int, float, float]] = []
    with Testbed(nodes, ready=2) as testbed:
        wait_until(lambda: stage.ready() == 3, "the candidate is not ready")
        load = Load(HOST, testbed.port, REQUEST, RATE)
        for words, weight in (
            (("start", "v2", "--weight", "25"), 25),
            (("rollback",), 0),
            (("start", "v2", "--weight", "5"), 5),
            (("shift", "25"), 25),
            (("shift", "100"), 100),
            (("promote",), 100),
        ):
            done = stage.rollout(*words)
            if done.returncode:
                raise RuntimeError(done.stderr)
            begin = load.now
            time.sleep(max(STEP_SECONDS, times / 2))
            steps.append((weight, begin, load.now))
        answers = load.stop()
        found = balance(stage, load, answers)
    applied = stage.applied()
    shares, wrong = {}, 0
    for weight, begin, end in steps:
        # What came just before the end of a step may have been handled after it.
        ids = [one.id for one in during(answers, begin, end - 1) if one.good]
        new = [one for one in ids if applied[one][0][1] == "v2"]
        shares[f"{weight} %"] = round(100 * len(new) / len(ids), 1)
        message = partial(Message, source="", channel="", body=b"", type="", key=None, time=0.0)
        wrong += sum((bucket(message(one)) < weight) != (applied[one][0][1] == "v2") for one in ids)
    stage.close()
    return {"shares_percent": shares, "at_the_wrong_version": wrong, **found}


def gone_wrong(database: Database, times: int) -> dict[str, Any]:
    """A candidate that fails one message of ten gets 25 % of them, and is watched."""
    stage = Stage(database.fresh())
    stage.begin("v1")
    nodes = [stage.node("--version", version) for version in ("v1", "v1", "bad")]
    seconds = []
    with Testbed(nodes, ready=2) as testbed:
        wait_until(lambda: stage.ready() == 3, "the candidate is not ready")
        load = Load(HOST, testbed.port, REQUEST, RATE)
        for _ in range(max(1, times // 4)):
            began = time.monotonic()
            done = stage.rollout("start", "bad", "--weight", "25", "--auto", "--every", "1m")
            seconds.append(time.monotonic() - began)
            if done.returncode != 1:
                raise RuntimeError(done.stdout + done.stderr)
            time.sleep(CALM_SECONDS + 2)
        found = balance(stage, load, load.stop())
    stage.close()
    return {"rolled_back": len(seconds), "longest_s": round(max(seconds), 2), **found}


PARTS: dict[str, Callable[[Database, int], dict[str, Any]]] = {
    "killed": killed,
    "restarted": restarted,
    "hot": lambda database, times: taken_over(database, times, "hot"),
    "warm": lambda database, times: taken_over(database, times, "warm"),
    "cold": started,
    "canary": rolled_out,
    "bad": gone_wrong,
}


def main() -> int:
    """Measure, print, and write what each part came to. 1 if something was lost, or took effect twice."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.availability", description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="how often each event happens")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument(
        "--databases",
        nargs="+",
        default=["sqlite", "postgresql", "rabbitmq"],
        choices=["sqlite", "postgresql", "rabbitmq"],
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that every process that was started is ended
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    wrong: Counter[str] = Counter()
    with databases(set(options.databases)) as found:
        for name in options.parts:
            for database in found:
                about = circumstances() | {"version": database.version} | PARTS[name](database, options.times)
                print(f"{name} on {database.name}: {json.dumps(about)}", flush=True)
                results.setdefault(name, {})[database.name] = about
                wrong.update({what: about.get(what, 0) for what in ("lost", "twice")})
                options.output.write_text(json.dumps(results, indent=2) + "\n")
    return int(any(wrong.values()))


if __name__ == "__main__":
    sys.exit(main())
