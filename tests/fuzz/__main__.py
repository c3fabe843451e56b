"""`make fuzz`: send one corpus of hostile inputs through each transport, and check the outcome of each input.

python -m tests.fuzz rabbitmq --inputs 50000 --seed 0 --json found.json
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.fuzz.corpus import Input, Limits, corpus, fingerprint
from tests.fuzz.replay import Result, in_memory, in_process
from tests.services.postgresql import PostgreSQL
from tests.services.rabbitmq import RabbitMQ


def sqlite(inputs: Sequence[Input]) -> Result:
    with tempfile.TemporaryDirectory(prefix="flowkit-fuzz-") as folder:
        return in_process(inputs, Path(folder), f"sqlite:///{folder}/fuzz.db")


def postgresql(inputs: Sequence[Input]) -> Result:
    with tempfile.TemporaryDirectory(prefix="flowkit-fuzz-") as folder, closing(PostgreSQL()) as database:
        database.start()
        return in_process(inputs, Path(folder), database.create_database("fuzz"))


def rabbitmq(inputs: Sequence[Input]) -> Result:
    with (
        tempfile.TemporaryDirectory(prefix="flowkit-fuzz-") as folder,
        closing(PostgreSQL()) as database,
        closing(RabbitMQ()) as broker,
    ):
        database.start()
        broker.start()
        return in_process(inputs, Path(folder), database.create_database("fuzz"), broker.url())


TRANSPORTS: dict[str, Callable[[Sequence[Input]], Result]] = {
    "memory": in_memory,
    "sqlite": sqlite,
    "postgresql": postgresql,
    "rabbitmq": rabbitmq,
}


def main() -> int:
    options = arguments()
    console = Console()
    inputs = corpus(options.seed, options.inputs, Limits(options.depth, options.header_bytes))
    found: dict[str, Any] = {
        "seed": options.seed,
        "inputs": len(inputs),
        "fingerprint": fingerprint(inputs),
        "transports": {},
    }
    failed = False
    for name in [options.transport] if options.transport else TRANSPORTS:
        console.print(f"[bold]{name}[/]: {len(inputs):,} inputs of seed {options.seed}, {found['fingerprint']}")
        result = TRANSPORTS[name](inputs)
        found["transports"][name] = report(result)
        console.print_json(data=report(result))
        failed = failed or bool(result.verdict.faults or result.verdict.vacuous())
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if failed else 0


def report(result: Result) -> dict[str, Any]:
    """What is written as JSON."""
    verdict = result.verdict
    kinds = sorted({kind for kind, _ in verdict.ends})
    return {
        "faults": len(verdict.faults),
        "first": verdict.faults[:20],
        "vacuous": verdict.vacuous(),
        "ends": verdict.totals(),
        "kinds": {
            kind: {end: count for (one, end), count in sorted(verdict.ends.items()) if one == kind} for kind in kinds
        },
        "reasons": dict(verdict.reasons.most_common()),
        "put_seconds": round(result.put_seconds, 1),
        "seconds": round(result.seconds, 1),
        "good_seconds": round(result.good_seconds, 3),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("transport", nargs="?", choices=TRANSPORTS, help="one of them; otherwise all")
    parser.add_argument("--inputs", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0, help="of the corpus; the rest is the system's own chance")
    parser.add_argument("--depth", type=int, default=Limits().depth, help="the deepest tables in headers")
    parser.add_argument("--header-bytes", type=int, default=Limits().header_bytes, help="the most headers of a message")
    parser.add_argument("--json", type=Path, help="write the result there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
