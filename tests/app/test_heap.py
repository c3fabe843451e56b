"""The heap of a worker: what is large goes back to the system."""

import subprocess
import sys

import pytest

from flowkit import App, heap
from flowkit.engine import worker
from flowkit.testing import Harness

KEPT = """
import resource
import runpy
import sys
import threading

MEBIBYTE = 1024 * 1024

def resident():
    with open("/proc/self/statm") as told:
        return int(told.read().split()[1]) * resource.getpagesize()

def work():
    for _ in range(3):
        body, more = b"x" * (15 * MEBIBYTE), b"y" * (15 * MEBIBYTE)
        del body, more
    gate.wait()
    gate.wait()

for heap in sys.argv[1:]:
    runpy.run_path(heap)["give_back"]()
before = resident()
gate = threading.Barrier(4)
for _ in range(3):
    threading.Thread(target=work).start()
gate.wait()
print((resident() - before) // MEBIBYTE)
gate.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="another C library")
def test_large_blocks_go_back_to_the_system_when_they_are_freed() -> None:
    assert _kept() > 40, "this library keeps nothing: give_back() can go"
    assert _kept(heap.__file__) < 10


def test_a_worker_tunes_the_heap_of_its_process(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned: list[bool] = []
    monkeypatch.setattr(worker, "give_back", lambda: tuned.append(True))
    app = App("shop")
    app.flow(app.channel("orders"))(lambda order: None)
    with Harness(app, sqlite_url) as harness:
        harness.worker.stop()
        harness.worker.run()
    assert tuned == [True]


def _kept(*arguments: str) -> int:
    """How many mebibytes three threads keep that have freed all of their large blocks."""
    command = [sys.executable, "-c", KEPT, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
