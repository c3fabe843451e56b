"""What several test files use: apps, sites and servers in the test's process, commands, waiting."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The folder of the repository."""
