"""`flowkit prove`: do the flows of an app survive a crash at any point?"""

from pathlib import Path

from flowkit.cli import show
from flowkit.cli.load import load, load_function
from flowkit.cli.plain import plain
from flowkit.testing.crash import CrashUnsafe, crash_everywhere


def prove(name: str, scenario: str, directory: Path | None, observe: str | None, points: int, as_json: bool) -> int:
    """Run a scenario once for each point, and tell what came of it. Returns the exit code."""
    app = load(name)
    try:
        proof = crash_everywhere(
            app,
            load_function(name, scenario),
            directory=directory,
            observe=load_function(name, observe) if observe else None,
            points=points,
        )
    except CrashUnsafe as unsafe:
        proof = unsafe.proof
    if as_json:
        show.as_json(
            {
                "possible": proof.possible,
                "killed": proof.killed,
                "ignored": proof.ignored,
                "escapes": [
                    {"point": escape.point, "differences": [one._asdict() for one in escape.differences]}
                    for escape in proof.escapes
                ],
            }
        )
    else:
        print(plain(f"app {app.name}: {proof}"))
    return 1 if proof.escapes else 0
