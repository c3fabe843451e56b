"""Slow, large, many and incomplete requests, to a worker directly and through the load balancers of `flowkit lb`."""

import http.client
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from benchmarks.attack.attackers import ATTACKS, BEGUN, SHARE
from benchmarks.attack.keys import instances
from benchmarks.attack.verdict import Verdict
from flowkit.sla.testbed import HOST, wait_until
from flowkit.web import balancer
from tests.services.balancer import Balancer

CLIENTS = 4
QUIET_SECONDS, ATTACK_SECONDS, END_SECONDS = 2.0, 6.0, 60.0
LEAST, MOST_MEBIBYTES, ROUNDS = 0.5, 400, 3
"""The part of their rate that ordinary requests keep; and the worker's memory, of which shared pages count in part."""
KIB = 1024
LOOK_SECONDS = 0.1
REFUSED = (http.client.HTTPException, OSError)


class Ordinary:
    """Clients that send one order after the other, each by its own connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._end = threading.Event()
        self._good = [0] * CLIENTS
        self._threads = [threading.Thread(target=self._send, args=(number,), daemon=True) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def rate(self, seconds: float) -> float:
        """How many were accepted a second, for so long. Blocks."""
        began, before = time.monotonic(), sum(self._good)
        time.sleep(seconds)
        return (sum(self._good) - before) / (time.monotonic() - began)

    def close(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _send(self, number: int) -> None:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=10)
        while not self._end.is_set():
            headers = {"content-type": "application/json", "idempotency-key": str(uuid4())}
            try:
                connection.request("POST", "/places", '{"name": "ordinary"}', headers)
                answer = connection.getresponse()
                answer.read()
                self._good[number] += answer.status == http.HTTPStatus.ACCEPTED
            except REFUSED:
                connection.close()
        connection.close()


class Memory:
    """The most memory that a worker had, and that the processes had that it started."""

    def __init__(self, supervisor: int) -> None:
        self._supervisor = supervisor
        self._end = threading.Event()
        self.worker = self.readers = 0
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(LOOK_SECONDS):
            for worker in _children(self._supervisor):
                self.worker = max(self.worker, _mebibytes(worker))
                self.readers = max(self.readers, sum(map(_mebibytes, _children(worker))))


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(one) for task in tasks for one in (task / "children").read_text().split()]
    return []


def _mebibytes(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) // KIB
    return 0


@contextmanager
def _ways(port: int) -> Iterator[dict[str, int]]:
    """The ways to an instance: directly, and through each balancer that is installed here."""
    with ExitStack() as opened:
        ways = {"directly": port}
        for kind in ("haproxy", "nginx"):
            one = opened.enter_context(closing(Balancer(kind)))
            place, here = [balancer.Instance(HOST, port)], f"{HOST}:{one.port}"
            fault = one.configure(
                balancer.haproxy(place, here, None) if kind == "haproxy" else balancer.nginx(place, here)
            )
            if fault:
                raise SystemExit(f"{kind} refuses its configuration: {fault}")
            one.start()
            ways[kind] = one.port
        yield ways


def _kept(name: str, port: int) -> float:
    """Which part of their rate ordinary requests keep. A machine has other work: what looks bad is seen three times."""
    parts = [_once(name, port)]
    while parts[0] < LEAST and len(parts) < ROUNDS:
        parts.append(_once(name, port))
    return statistics.median(parts)


def _once(name: str, port: int) -> float:
    """The rate of ordinary requests with an attack, as a part of that before. All come by the same way."""
    with closing(Ordinary(port)) as ordinary:
        wait_until(lambda: ordinary.rate(LOOK_SECONDS) > 0, "ordinary requests are not answered")
        before = ordinary.rate(QUIET_SECONDS)
        command = [sys.executable, "-m", "benchmarks.attack.attackers", name, str(port), str(ATTACK_SECONDS)]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as attacker:
            assert attacker.stdout is not None and attacker.stdout.readline().strip() == BEGUN
            during = ordinary.rate(ATTACK_SECONDS)
            deeds, _ = attacker.communicate(timeout=END_SECONDS)
        assert int(deeds) > CLIENTS, f"{name} did nothing"
        return during / before


def attacks(names: Sequence[str] = tuple(ATTACKS)) -> Iterator[Verdict]:
    """Attack an instance in each way, a new one each time."""
    for name in names:
        with instances(1) as (node,), _ways(node.port) as ways, closing(Memory(node.pid)) as memory:
            parts = {way: _kept(name, port) for way, port in ways.items()}
            held = all(part >= LEAST for part in parts.values())
            held = held and 0 < memory.worker < MOST_MEBIBYTES
            kept = ", ".join(f"{way} {part:.0%}" for way, part in parts.items())
            tried = (ATTACKS[name].__doc__ or "").strip().rstrip(".")
            seen = f"ordinary requests keep {kept} of their rate; {memory.worker} MB"
            seen += f", and {memory.readers} MB of the reader" if memory.readers else ""
            yield Verdict(name.replace("_", " "), f"{tried}, with {SHARE:.0%} of a core", seen, held)
