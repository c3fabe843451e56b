"""Testing flows: the harness that runs them in memory with a virtual clock, and the conformance kit for ports."""

from flowkit.testing.harness import Harness

__all__ = ["Harness"]
