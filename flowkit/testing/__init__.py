"""Testing flows: the harness that runs them in memory on a virtual clock, the proof that they survive crashes, and the
kit that tests ports."""

from flowkit.testing.crash import CrashUnsafe, Proof, crash_everywhere
from flowkit.testing.harness import Harness

__all__ = ["CrashUnsafe", "Harness", "Proof", "crash_everywhere"]
