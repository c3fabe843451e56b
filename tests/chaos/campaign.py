"""A run of chaos: clients publish orders in portions, and a fault strikes during each portion."""

import json
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

from flowkit.services import connect, open_store
from flowkit.settings import Settings
from tests.chaos import oracle
from tests.chaos.app import DEEDS
from tests.chaos.fleet import Client, Host
from tests.chaos.oracle import FLOWS, Verdict
from tests.chaos.scene import Scene
from tests.support.shop import Base

HOSTS = 2
CLIENTS = 2
AHEAD = 3
"""By how many shares clients may be behind before nothing more is broken."""
PATIENCE_SECONDS = 300.0
REST_SECONDS = 300.0
SAID_BYTES = 3000
PAUSES = (0.2, 8.0)
"""Seconds: shorter and longer than leases and heartbeats."""
BUSY_SECONDS = 3.0
"""So long, at the most, a kill waits for a handler to run."""
WAITED = 0.75
"""This part of the kills waits for that: the others meet whatever is there."""
BUSY = 0.15
"""At least this part of the kills has to come right after a handler began, where there are MANY."""
MANY = 20
UNEXPECTED = re.compile(rb"a step failed, and is tried again|Traceback \(most recent call last\)")
DIED = re.compile(rb"worker \d+ died \(SIGKILL\) with (\d+) message\(s\) in flight")


class Plan(NamedTuple):
    """How much is published, and how often what breaks. Service faults are those of the scene."""

    messages: int
    kills: int
    """Of one worker."""
    hosts: int
    """Kills of a whole host: the supervisor and its workers at once."""
    supervisors: int
    """Kills of a supervisor alone."""
    pauses: int
    services: Mapping[str, int] = {}


class Outcome(NamedTuple):
    """What became of a run."""

    plan: Plan
    faithful: bool
    verdict: Verdict
    struck: Counter[str]
    """What was broken how often."""
    busy: int
    """Kills that met a handler at work, by what supervisors said."""
    close: int
    """Kills within a millisecond or two of the beginning of a handler's run: they meet its batch, up to its commit."""
    unexpected: list[str]
    """What workers or clients said of errors that nobody foresaw."""
    seconds: float
    drained: float
    """Seconds from the last fault until everything was at its end."""

    @property
    def faults(self) -> list[str]:
        """What is wrong. Where the database forgets, what it forgot is lost, and may come again under other ids."""
        verdict, deaths = self.verdict, sum(self.struck[one] for one in ("kill", "host", "supervisor"))
        if not self.faithful:
            return [*verdict.twice, *verdict.invented, *self.unexpected]
        # A suspect that runs alone when its worker is killed is charged for it.
        charged = [f"{verdict.charged} attempts were charged, in {deaths} deaths"] if verdict.charged > deaths else []
        return [*verdict.faults, *self.unexpected, *charged]

    @property
    def vacuous(self) -> list[str]:
        """What should have happened and did not."""
        plan, verdict = self.plan, self.verdict
        planned = {"kill": plan.kills, "host": plan.hosts, "supervisor": plan.supervisors, "pause": plan.pauses}
        found = [
            f"{self.struck[name]} × {name}, not {count}"
            for name, count in {**planned, **plan.services}.items()
            if self.struck[name] != count
        ]
        if self.faithful and verdict.accepted < 0.9 * plan.messages:
            found.append(f"{verdict.accepted} orders were accepted, of {plan.messages}")
        for deed, percent in DEEDS.items():
            if deed not in ("", "slow") and verdict.did[deed] < (least := plan.messages * percent // 1000):
                found.append(f"{deed} was done {verdict.did[deed]} times, and at least {least} are wanted")
        if plan.kills >= 10 * MANY and not verdict.outlived:
            found.append("no forked child outlived its worker")
        if not verdict.repeated or not verdict.moved:
            found.append(f"{verdict.repeated} runs were repeated, {verdict.moved} messages taken over")
        if plan.kills >= MANY and self.close < BUSY * plan.kills:
            found.append(f"{self.close} of {plan.kills} kills came right after a handler began")
        if not self.faithful and not verdict.lost:
            found.append("nothing was lost: the standby was not behind")
        return found

    def report(self) -> dict[str, Any]:
        """As JSON."""
        verdict = self.verdict
        return {
            "orders": verdict.accepted,
            "told": dict(verdict.told),
            "lost": len(verdict.lost),
            "lost_by_failover": [[loss.orders, round(loss.seconds, 3)] for loss in verdict.losses],
            "twice": len(verdict.twice),
            "again": len(verdict.again),
            "wrong": [*verdict.unfounded, *verdict.invented, *verdict.wrong],
            "handler_runs": verdict.runs,
            "runs_failed": verdict.failed,
            "runs_repeated": verdict.repeated,
            "messages_taken_over": verdict.moved,
            "attempts_charged": max(0, verdict.charged),
            "deeds": dict(+verdict.did),
            "children_that_outlived_their_worker": verdict.outlived,
            "faults": dict(self.struck),
            "kills_with_messages_in_flight": self.busy,
            "kills_after_a_run_began": self.close,
            "seconds": round(self.seconds),
            "drained_seconds": round(self.drained, 1),
        }


class Campaign:
    """One run of a plan in a scene."""

    def __init__(self, scene: Scene, plan: Plan, drawn: random.Random, tell: Callable[[str], None] = print) -> None:
        self._scene = scene
        self._plan = plan
        self._drawn = drawn
        self._tell = tell
        self._struck: Counter[str] = Counter()
        self._close = 0
        self._hosts: list[Host] = []
        self._resumes: list[tuple[float, Host, int]] = []
        self._broken: dict[str, tuple[str, Future[None]]] = {}
        """What breaks now, by the service that it breaks: the first word of the fault."""

    def run(self) -> Outcome:
        """Publish, break, mend, wait for rest, judge. Blocks for minutes. Leaves nothing running."""
        scene, began = self._scene, time.monotonic()
        empty = open_store(Settings(database_url=scene.url), check=False)
        empty.schema.upgrade()
        Base.metadata.create_all(empty.dialect.engine)
        empty.close()
        with ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flowkit-chaos-")))
            environment = {**scene.environment, "CHAOS_DIR": str(self.folder)}
            log = stack.enter_context((self.folder / "log").open("ab"))
            try:
                self._hosts = [stack.enter_context(closing(Host(environment, log))) for _ in range(HOSTS)]
                clients = [
                    stack.enter_context(closing(Client(f"c{number}", environment, self.folder, log)))
                    for number in range(CLIENTS)
                ]
                pool = stack.enter_context(ThreadPoolExecutor(8))
                self._break_all(clients, pool)
                self._resume(all=True)
                mended = time.monotonic()
                self._wait(lambda: not any(one.behind for one in clients), PATIENCE_SECONDS, "the clients end")
                services = connect(Settings(database_url=scene.url, broker_url=scene.broker_url))
                stack.callback(services.close)
                store = services.store
                self._wait(
                    lambda: (
                        not (scene.faithful and store.ledger.unfinished(FLOWS)) and not any(store.ledger.pending(FLOWS))
                    ),
                    REST_SECONDS,
                    "everything is at its end",
                )
                drained = time.monotonic() - mended
                for host in self._hosts:
                    assert host.stop() == 0, "a host did not end in good order"
                verdict = oracle.judge(store, services.transport.depths(FLOWS), self.folder, scene.takeovers)
            except BaseException:
                self._tell((self.folder / "log").read_bytes()[-5000:].decode(errors="replace"))
                raise
            said = (self.folder / "log").read_bytes()
        busy = sum(int(found) > 0 for found in DIED.findall(said))
        unexpected = [said[one.start() :][:SAID_BYTES].decode(errors="replace") for one in UNEXPECTED.finditer(said)]
        seconds = time.monotonic() - began
        found = self._struck, busy, self._close, unexpected
        return Outcome(self._plan, scene.faithful, verdict, *found, seconds, drained)

    def _break_all(self, clients: list[Client], pool: ThreadPoolExecutor) -> None:
        plan = self._plan
        faults = ["kill"] * plan.kills + ["host"] * plan.hosts + ["supervisor"] * plan.supervisors
        faults += ["pause"] * plan.pauses
        faults += [name for name, count in plan.services.items() for _ in range(count)]
        self._drawn.shuffle(faults)
        ahead = AHEAD * max(plan.messages // len(faults), 10)
        self._pick()
        for number, fault in enumerate(faults):
            share = plan.messages * (number + 1) // len(faults) - plan.messages * number // len(faults)
            if fault in plan.services:  # first, so that what it waits for comes
                self._break(fault, pool)
            for index, client in enumerate(clients):
                client.publish(share * (index + 1) // len(clients) - share * index // len(clients))
            if fault not in plan.services:
                time.sleep(self._drawn.uniform(0, 0.2))  # nothing waits for this: it chooses what a fault meets
                self._strike(fault)
            self._tell(f"{number + 1}/{len(faults)} {fault}")
            self._wait(lambda: sum(one.behind for one in clients) <= ahead, PATIENCE_SECONDS, "the clients go on")
        for service in list(self._broken):
            self._mended(service)

    def _strike(self, fault: str) -> None:
        """Break a process."""
        host, pid = self._pick()
        match fault:
            case "kill":
                host, pid = self._await_run() or (host, pid)
                while not host.kill_worker(pid):
                    host, pid = self._pick()
            case "host":
                host.kill()
            case "supervisor":
                host.kill_supervisor()
            case "pause":
                host.pause(pid)
                self._resumes.append((time.monotonic() + self._drawn.uniform(*PAUSES), host, pid))
        self._struck[fault] += 1

    def _await_run(self) -> tuple[Host, int] | None:
        """Wait until a worker runs a handler, whichever it is, most times: else few kills would meet one at work. Which
        one began, if one did."""
        workers = {pid: host for host in self._struck_hosts for pid in host.workers()}
        before = {pid: size(self.folder / f"runs-{pid}") for pid in workers}
        end = time.monotonic() + BUSY_SECONDS * (self._drawn.random() < WAITED)
        while time.monotonic() < end:
            for pid, host in workers.items():
                if size(self.folder / f"runs-{pid}") > before[pid]:
                    self._close += 1
                    return host, pid
            time.sleep(0.001)
        return None

    def _break(self, fault: str, pool: ThreadPoolExecutor) -> None:
        """Break a service, while everything goes on. One thing at a time breaks of each."""
        service = fault.split(maxsplit=1)[0]
        self._mended(service)
        self._broken[service] = fault, pool.submit(self._scene.faults[fault])

    def _mended(self, service: str) -> None:
        """Wait until what broke of a service works again. Only then did it happen."""
        if service in self._broken:
            fault, future = self._broken.pop(service)
            self._wait(future.done, PATIENCE_SECONDS, f"{fault} is over")
            future.result()
            self._struck[fault] += 1

    def _resume(self, all: bool = False) -> None:
        now = time.monotonic()
        for one in [one for one in self._resumes if all or one[0] <= now]:
            _, host, pid = one
            host.resume(pid)
            self._resumes.remove(one)

    @property
    def _struck_hosts(self) -> list[Host]:
        """The hosts whose processes are broken."""
        return self._hosts

    def _pick(self) -> tuple[Host, int]:
        """A worker that works, and its host; waits for one."""
        found: list[tuple[Host, int]] = []

        def look() -> bool:
            found[:] = [(host, pid) for host in self._struck_hosts for pid in host.workers()]
            return bool(found)

        self._wait(look, PATIENCE_SECONDS, "a worker works")
        return self._drawn.choice(found)

    def _wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait, while paused workers go on when it is time for it, and hosts start again."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"in {seconds:g} s it did not come true that {what}"
            self._resume()
            for host in self._hosts:
                host.revive()
            time.sleep(0.05)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def dump(outcome: Outcome, path: Path) -> None:
    path.write_text(json.dumps(outcome.report(), indent=1) + "\n")
