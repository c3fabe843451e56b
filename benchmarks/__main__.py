"""The reliable work by FlowKit and by a naive loop, alternately, on SQLite, PostgreSQL and RabbitMQ: `make bench`."""

import argparse
from pathlib import Path

from benchmarks.database import databases
from benchmarks.latency import latency
from benchmarks.report import Report
from benchmarks.telemetry import telemetry
from benchmarks.throughput import throughput
from benchmarks.waiting import waiting
from benchmarks.work import STYLES

RESULTS = Path(__file__).parent / "results" / "latest.json"
DATABASES = ["sqlite", "postgresql", "rabbitmq"]
QUICK = {"messages": 4_000, "rounds": 2, "latency_rounds": 2, "seconds": 5.0}


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000, help="of each throughput run")
    parser.add_argument("--rounds", type=int, default=3, help="of throughput")
    parser.add_argument("--latency-rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each latency run")
    parser.add_argument("--databases", nargs="+", default=DATABASES, choices=DATABASES)
    parser.add_argument("--styles", nargs="+", default=list(STYLES), choices=STYLES, help="of the handler")
    parser.add_argument("--quick", action="store_true", help="a few minutes in place of twenty; less to rely on")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = vars(parser.parse_args())
    if options["quick"]:
        options |= {name: value for name, value in QUICK.items() if options[name] == parser.get_default(name)}
    report = Report({name: value for name, value in options.items() if name != "output"})
    with databases(set(options["databases"])) as found:
        for database in found:
            for style in options["styles"]:
                speed = throughput(database, style, options["messages"], options["rounds"])
                wait = latency(database, style, options["seconds"], options["latency_rounds"])
                report.add(database, style, speed, wait)
            if database.name != "SQLite":
                report.add_waiting(database, waiting(database, options["messages"]))
        report.add_telemetry(found[0], telemetry(found[0], options["messages"], options["rounds"]))
    report.show()
    report.write(options["output"])


if __name__ == "__main__":
    main()
