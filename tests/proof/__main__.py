"""`make proof`: run every tool with its full numbers, in parts, and write docs/proof.md.

python -m tests.proof                            all parts that have not run for this code
python -m tests.proof chaos-sqlite soak-sqlite   these, again

The results of a part are in docs/proof/PART.json. They are valid while FlowKit and the tools of the part are those of
the commit that it ran. Parts run in a checkout of the last commit, regardless of later edits. Parts of different lines
run at the same time: those that break processes mostly wait, and leave the cores to those that compute.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from tests.proof.report import together, write
from tests.proof.rows import ROOT
from tests.simulation.campaign import seldom

HOME = ROOT / "docs" / "proof"
CODE = ("flowkit", "connectors", "tests/support/shop.py")
"""What every part is about."""
MODULES = ("__main__", "app", "campaign", "client", "fleet", "host", "oracle", "scene")
CAMPAIGN = (*(f"tests/chaos/{name}.py" for name in MODULES), "tests/services")
TOOLS = {
    "simulation": ("tests/simulation",),
    "chaos": CAMPAIGN,
    "chaos.soak": (*CAMPAIGN, "tests/chaos/soak.py"),
    "fuzz": (*CAMPAIGN, "tests/fuzz"),
    "proof.shown": ("tests",),
}
"""What parts are done with."""
LIBRARIES = ("pika", "psycopg", "sqlalchemy", "pydantic", "pysqlite3")


LOG_BYTES = 10_000
COMPUTES = "computes"
"""The line that only computes: it gets what the others leave."""


class Part(NamedTuple):
    """A command that writes what it found as JSON behind `--json`."""

    what: str
    command: str
    line: str
    """Parts of one line run one after the other."""

    @property
    def code(self) -> tuple[str, ...]:
        """The folders and files whose change makes it another proof."""
        return (*CODE, *TOOLS[self.command.split()[0]])


SEEDS, SLICE = 50_000, 10_000
LEAST = 50
"""So often each fault must have hit each place of the simulation."""
CHAOS = "--kills 300 --pauses 60"
PARTS = {
    **{
        f"simulation-{first // SLICE + 1}": Part(
            "the engine under simulated faults", f"simulation --from {first} --seeds {SLICE}", COMPUTES
        )
        for first in range(0, SEEDS, SLICE)
    },
    "mutants": Part("the engine, broken on purpose", "simulation --mutants", COMPUTES),
    "chaos-sqlite": Part("chaos on SQLite", f"chaos sqlite --messages 20000 {CHAOS} --services 40", "chaos"),
    "chaos-rabbitmq": Part(
        "chaos on RabbitMQ with PostgreSQL", f"chaos rabbitmq --messages 20000 {CHAOS} --services 135", "chaos"
    ),
    "cluster": Part(
        "three nodes of RabbitMQ that die and are parted",
        "chaos cluster --messages 4000 --kills 20 --pauses 4 --services 18",
        "chaos",
    ),
    "failover": Part(
        "failovers to a synchronous standby",
        "chaos failover --messages 4000 --kills 20 --pauses 4 --services 15",
        "chaos",
    ),
    "lagging": Part(
        "failovers to a standby that is behind", "chaos lagging --messages 2000 --kills 10 --services 5", "chaos"
    ),
    "rows": Part("each failure by itself", "proof.shown", "chaos"),
    "fuzz": Part("hostile inputs through each transport", "fuzz --inputs 50000", "soak"),
    "soak-sqlite": Part("a steady load on SQLite", "chaos.soak sqlite --minutes 20 --rate 30", "soak"),
    "soak-rabbitmq": Part(
        "a steady load on RabbitMQ with PostgreSQL", "chaos.soak rabbitmq --minutes 20 --rate 30", "soak"
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of: {', '.join(PARTS)}")
    options = parser.parse_args()
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    HOME.mkdir(exist_ok=True)
    todo = [name for name in PARTS if (name in options.parts if options.parts else not done(name))]
    lines = {PARTS[name].line: [one for one in todo if PARTS[one].line == PARTS[name].line] for name in todo}
    with checkout() as tree, ThreadPoolExecutor(len(PARTS)) as pool:
        failed = [name for names in pool.map(partial(run_line, tree), lines.values()) for name in names]
    passed = [name for name in PARTS if done(name)]
    found = {name: json.loads(path.read_text()) for name in PARTS if (path := HOME / f"{name}.json").exists()}
    simulated = together([one["found"] for name, one in found.items() if name.startswith("simulation")])
    few = seldom(simulated["faults"], simulated["met"], LEAST) if len(passed) == len(PARTS) else []
    older = found.keys() - set(passed)
    write(ROOT / "docs" / "proof.md", {name: part.what for name, part in PARTS.items()}, found, older)
    print(f"failed: {', '.join(failed)}" if failed else f"{len(passed)} of {len(PARTS)} parts passed: docs/proof.md")
    if few:
        print(f"happened less than {LEAST} times: {', '.join(few)}")
    return 1 if failed or few or len(passed) < len(PARTS) else 0


def done(name: str) -> bool:
    """Whether a part passed with this code."""
    path = HOME / f"{name}.json"
    try:
        return path.exists() and code(name, json.loads(path.read_text())["commit"]) == code(name)
    except subprocess.CalledProcessError:
        return False  # a commit that this clone does not have


@contextmanager
def checkout() -> Iterator[Path]:
    """The last commit, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="flowkit-proof-") as folder:
        tree = Path(folder) / "flowkit"
        git("worktree", "add", "--detach", str(tree), "HEAD")
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def run_line(tree: Path, names: Sequence[str]) -> list[str]:
    """Run parts one after the other. Returns those that failed."""
    return [name for name in names if not run(name, tree)]


def run(name: str, tree: Path) -> bool:
    """Run a part of the code in this folder. What it found is kept only if it passed."""
    part, began = PARTS[name], time.monotonic()
    print(f"{name} begins", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder) / "found.json", Path(folder) / "log"
        command = [sys.executable, "-m", *f"tests.{part.command}".split(), "--json", str(result)]
        if part.line == COMPUTES:
            command = ["nice", *command]
        with log.open("wb") as output:
            status = subprocess.run(command, cwd=tree, stdout=output, stderr=output, check=False).returncode
        passed, seconds = status == 0, round(time.monotonic() - began)
        if passed:
            found: dict[str, Any] = {
                "commit": git("-C", str(tree), "rev-parse", "--short=12", "HEAD"),
                "command": f"python -m tests.{part.command}",
                "seconds": seconds,
                "machine": machine(),
                "found": json.loads(result.read_text()),
            }
            (HOME / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        else:
            print(log.read_bytes()[-LOG_BYTES:].decode(errors="replace"))
    print(f"{name} {'passed' if passed else 'FAILED'} in {seconds} s", flush=True)
    return passed


def code(name: str, commit: str = "HEAD") -> list[str]:
    """What identifies the code that a part ran in a commit."""
    return [git("rev-parse", f"{commit}:{place}") for place in PARTS[name].code]


def machine() -> dict[str, Any]:
    """What it runs on."""
    versions = {name: metadata.version(name) for name in LIBRARIES}
    versions["rabbitmq-server"], versions["postgresql"] = installed("rabbitmq-server"), installed("postgresql")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return {"python": platform.python_version(), "cores": os.cpu_count(), "memory_gib": memory, **versions}


def installed(package: str) -> str:
    asked = ["dpkg-query", "--show", "--showformat=${Version}", package]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
