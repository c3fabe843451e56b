"""Testing flows: a harness that runs them in memory on a virtual clock, a proof that they survive crashes, and a kit
that tests implementations of ports."""

from flowkit.testing.crash import CrashUnsafe, Proof, crash_everywhere
from flowkit.testing.harness import Harness

__all__ = ["CrashUnsafe", "Harness", "Proof", "crash_everywhere"]
