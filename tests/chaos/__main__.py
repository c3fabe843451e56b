"""`make chaos`: break real processes and services, and compare the clients' answers with the stored state.

python -m tests.chaos sqlite --messages 20000 --kills 300 --pauses 60 --services 80
python -m tests.chaos --minutes 10
"""

import argparse
import itertools
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from rich.console import Console

from tests.chaos.campaign import Campaign, Outcome, Plan, dump
from tests.chaos.scene import Broker, Cluster, Failover, Lagging, Scene, Sqlite

SCENES: dict[str, Callable[[random.Random], Scene]] = {
    "sqlite": Sqlite,
    "rabbitmq": Broker,
    "cluster": Cluster,
    "failover": Failover,
    "lagging": Lagging,
}


def main() -> int:
    options = arguments()
    console = Console()
    scenes = [options.scene] if options.scene else [name for name in SCENES if name != "lagging"]
    end = time.monotonic() + 60 * options.minutes
    for round, name in enumerate(itertools.cycle(scenes)):
        console.print(f"[bold]{name}[/], seed {options.seed + round}")
        outcome = run(name, options, random.Random(options.seed + round), console)
        if options.json:
            dump(outcome, options.json)
        wrong = [*outcome.faults, *outcome.vacuous]
        for fault in wrong[:20]:
            console.print(f"[bold red]{fault}[/]", highlight=False)
        if wrong or (time.monotonic() > end and round + 1 >= len(scenes)):
            return 1 if wrong else 0
    raise AssertionError("unreachable: a cycle has no end")


def run(name: str, options: argparse.Namespace, drawn: random.Random, console: Console) -> Outcome:
    """One campaign, with its result on the terminal."""
    with closing(SCENES[name](drawn)) as scene:
        if name == "sqlite" and "disk full" not in scene.faults:
            console.print("no disk can be mounted here, to be filled: that needs root")
        tenth, services = options.kills // 10, spread(scene, options.services)
        plan = Plan(options.messages, options.kills - 2 * tenth, tenth, tenth, options.pauses, services)
        outcome = Campaign(scene, plan, drawn, lambda text: console.print(text, highlight=False)).run()
    console.print_json(data=outcome.report())
    return outcome


def spread(scene: Scene, total: int) -> dict[str, int]:
    """So many faults of services, of each kind alike."""
    return dict(Counter(itertools.islice(itertools.cycle(scene.faults), total)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("scene", nargs="?", choices=SCENES, help="one of them; otherwise all, one after the other")
    parser.add_argument("--minutes", type=float, default=0, help="go on with other seeds for so long")
    parser.add_argument("--messages", type=int, default=2000, help="orders to publish; each is four runs of handlers")
    parser.add_argument(
        "--kills", type=int, default=30, help="SIGKILL for a worker; a tenth each for hosts, supervisors"
    )
    parser.add_argument("--pauses", type=int, default=6, help="SIGSTOP for a worker, then SIGCONT")
    parser.add_argument("--services", type=int, default=10, help="faults of the database and the broker")
    parser.add_argument("--seed", type=int, default=0, help="of what breaks when; the rest is the system's own chance")
    parser.add_argument("--json", type=Path, help="write the last result there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
