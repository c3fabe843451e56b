"""The throughput of one instance by HTTP, in accepted and stored requests a second, and the latency at half of that:
`make bench-ingress`.

The load comes from h2load (nghttp2), a C program, so that it uses little of the measured cores. At half of the rate,
each of its clients sends at fixed times.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.availability_app import Base
from benchmarks.cpu import of_trees
from benchmarks.database import Database, circumstances, databases
from flowkit.services import open_store
from flowkit.settings import Settings
from flowkit.sla.load import percentile
from flowkit.sla.testbed import HOST, Node, wait_until

RESULTS = Path(__file__).parent / "results" / "ingress.json"
APP = "benchmarks.availability_app:app"
FLOW = "availability.accept"
CLIENTS = 64
SECONDS = 10
RATE = re.compile(r"finished in ([\d.]+)(m?s), ([\d.]+) req/s")
CODES = re.compile(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx")
MICROSECONDS = 2
"""The column of the log that has a request's time."""


def ask(node: Node, home: Path, *options: str) -> tuple[float, list[float]]:
    """Requests from all clients. How many were answered with success a second, and the seconds that each took."""
    body, log = home / "order.json", home / "log"
    body.write_text('{"number": 1}')
    log.unlink(missing_ok=True)
    program = shutil.which("h2load")
    if program is None:
        raise SystemExit("h2load is not installed: apt-get install nghttp2-client")
    done = subprocess.run(
        [program, "--h1", "-c", str(CLIENTS), "-t", "1", "-d", str(body), "-H", "content-type: application/json",
         "--log-file", str(log), *options, f"http://{HOST}:{node.port}/orders"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rate, codes = RATE.search(done.stdout), CODES.search(done.stdout)
    assert rate is not None and codes is not None, done.stdout
    good, *others = map(int, codes.groups())
    if any(others):
        raise SystemExit(f"requests failed: {done.stdout}")
    return float(rate[3]), [int(line.split()[MICROSECONDS]) / 1e6 for line in log.read_text().splitlines()][-good:]


def measure(database: Database, paused: bool) -> dict[str, Any]:
    """`paused`: only accept, the flow rests; else the instance also applies what it accepted."""
    place = database.fresh()
    store: Any = open_store(Settings(database_url=place.database), check=False)
    store.schema.upgrade()
    Base.metadata.create_all(store.dialect.engine)
    if paused:
        store.directions.set("paused", ["availability"], 1)
    node = Node(APP, (), {"FLOWKIT_DATABASE_URL": place.database, "FLOWKIT_BROKER_URL": place.broker})
    node.start()
    try:
        wait_until(lambda: node.ready, "the instance is not ready")
        with tempfile.TemporaryDirectory(prefix="flowkit-ingress-") as folder:
            home = Path(folder)
            ask(node, home, "-n", "2000")
            used = of_trees([*place.servers.values(), node.pid])
            most, _ = ask(node, home, "-D", str(SECONDS))
            cost = (of_trees([*place.servers.values(), node.pid]) - used) / (most * SECONDS)
            if not paused:
                wait_until(lambda: store.ledger.unfinished([FLOW]) == 0, "the flow did not come to its end")
            half, took = ask(node, home, "-D", str(SECONDS), "--rps", str(round(most / 2 / CLIENTS, 2)))
        accepted = store.ledger.balances()[FLOW].accepted
    finally:
        node.kill()
        store.close()
    return {
        "requests_per_second": round(most),
        "cpu_us_per_request": round(cost * 1e6),
        "at_half": round(half),
        "p50_ms": round(percentile(took, 50) * 1e3, 1),
        "p99_ms": round(percentile(took, 99) * 1e3, 1),
        "accepted": accepted,
    }


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingress", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"], choices=["sqlite", "postgresql"])
    options = parser.parse_args()
    os.environ.setdefault("FLOWKIT_LOG_LEVEL", "WARNING")
    results: dict[str, Any] = {**circumstances(), "rounds": options.rounds}
    with databases(set(options.databases)) as found:
        for database in found:
            for name, paused in (("accepted only", True), ("accepted and applied", False)):
                runs = [measure(database, paused) for _ in range(options.rounds)]
                medians = {what: statistics.median(run[what] for run in runs) for what in runs[0]}
                print(f"{database.name}, {name}: {json.dumps(medians)}", flush=True)
                results[f"{database.name}, {name}"] = medians
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
