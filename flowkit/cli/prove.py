"""`flowkit prove`: test whether the flows of an app survive a crash at any point."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from flowkit.cli import show
from flowkit.cli.load import load, load_function
from flowkit.plain import ENDS, plain
from flowkit.testing.crash import CrashUnsafe, Proof, crash_everywhere
from flowkit.testing.end import Row, brief
from flowkit.testing.process import ScenarioFailed, Unrepeatable

ESCAPED, UNPROVEN = 1, 2


def prove(name: str, scenario: str, directory: Path | None, observe: str | None, points: int, as_json: bool) -> int:
    """Run a scenario once for each crash point, and print the result. Shows the progress on a terminal. Blocks.

    Returns the exit code: 1 if a crash changed the final state; 2 if that cannot be decided, because the scenario fails
    or its final state varies.
    """
    app = load(name)
    with _bar() as bar:
        task = bar.add_task("killing workers", total=None)
        try:
            proof = crash_everywhere(
                app,
                load_function(name, scenario),
                directory=directory,
                observe=load_function(name, observe) if observe else None,
                points=points,
                progress=lambda done, total: bar.update(task, completed=done, total=total, refresh=True),
            )
        except CrashUnsafe as unsafe:
            proof = unsafe.proof
        except (ScenarioFailed, Unrepeatable) as unproven:
            bar.stop()
            print(f"flowkit: {plain(str(unproven), ENDS)}", file=sys.stderr)
            return UNPROVEN
    if as_json:
        show.as_json(_as_json(proof))
    else:
        print(plain(f"app {app.name}: {proof}", ENDS))
    return ESCAPED if proof.escapes else 0


def _bar() -> Progress:
    """A progress bar on a terminal. No thread draws it: forked processes would inherit that thread's locks."""
    return Progress(
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _as_json(proof: Proof) -> dict[str, Any]:
    return {
        "possible": proof.possible,
        "killed": proof.killed,
        "ignored": proof.ignored,
        "masked": proof.masked,
        "unwatched": proof.unwatched,
        "escapes": [
            {
                "point": escape.point,
                "differences": [
                    {"where": one.where, "missing": _rows(one.missing), "surplus": _rows(one.surplus)}
                    for one in escape.differences
                ],
            }
            for escape in proof.escapes
        ],
    }


def _rows(rows: list[Row]) -> list[dict[str, Any]]:
    """Rows for JSON: long values, and values without a JSON type, as text."""
    return [
        {
            name: value if isinstance(value, str | int | float | None) and brief(value) == repr(value) else brief(value)
            for name, value in row.items()
        }
        for row in rows
    ]
