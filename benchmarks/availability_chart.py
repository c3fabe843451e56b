"""Draws docs/explanation/availability.png and .svg from the results of `make availability`, and prints their table."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.availability import LEASE_SECONDS, RESULTS

PICTURE = Path(__file__).parent.parent / "docs" / "explanation" / "availability"
DATABASES = {"SQLite": "#57606a", "PostgreSQL": "#1f6feb", "RabbitMQ + PostgreSQL": "#bf8700"}
EVENTS = (
    ("killed", "longest_until_applied_s", "instance killed, active-active:\nits work is done by others"),
    ("hot", "longest_s", "active group killed, hot spare:\nanswers again"),
    ("warm", "longest_s", "active group killed, warm spare:\nanswers again"),
    ("cold", "longest_s", "nothing runs, one is started:\nanswers"),
    ("canary", "longest_until_applied_s", "5, 25, 100 %, promoted, rolled back:\nlongest wait of a message"),
    ("bad", "longest_s", "a candidate that fails one of ten:\nrolled back"),
)


def lost(one: dict[str, Any]) -> str:
    return f"{one['lost']} lost, {one['twice']} twice"


def sent(one: dict[str, Any]) -> str:
    return f"{one['requests']:,} requests: {one['failed_after_a_retry']} failed, {lost(one)}"


def takeovers(one: dict[str, Any]) -> str:
    return f"longest of {one['takeovers']}: {one['longest_s']} s, median {one['median_s']} s; {lost(one)}"


def canary(one: dict[str, Any]) -> str:
    waited = f"no message waited longer than {one['longest_until_applied_s']} s"
    return f"{sent(one)}, {one['at_the_wrong_version']} at the wrong version; {waited}"


ROWS: tuple[tuple[str, str, str, Callable[[dict[str, Any]], str]], ...] = (
    (
        "killed", "an instance of three killed with -9", "0 lost, 0 twice; no error after one retry",
        lambda one: f"{one['kills']} kills, {sent(one)}",
    ),
    (
        "killed", "… response time at 99 % back to normal", "< 2 s",
        lambda one: f"{one['back_to_normal_s']} s",
    ),
    (
        "killed", "… its work is applied by others, the longest", "< 2 s; SQLite < lease + 1 s",
        lambda one: f"{one['longest_until_applied_s']} s",
    ),
    (
        "restarted", "rolling restart of all three", "0 failed, 0 lost, 0 twice",
        lambda one: f"{one['rolling_restarts']} times, {sent(one)}",
    ),
    ("hot", "hot standby, active group killed", "< lease (3 s) + 1 s", takeovers),
    ("warm", "warm standby, active group killed", "< lease + start-up + 1 s", takeovers),
    (
        "cold", "cold: an instance is started", "reported",
        lambda one: f"longest of {one['starts']}: {one['longest_s']} s",
    ),
    (
        "canary", "25 %, rolled back; 5, 25, 100 %, promoted", "0 failed, 0 lost, 0 twice; each key at its version",
        canary,
    ),
    (
        "bad", "a candidate that fails one of ten, `--auto`", "rolled back in < 10 s",
        lambda one: f"longest of {one['rolled_back']}: {one['longest_s']} s; {lost(one)}",
    ),
)  # fmt: skip
"""Part, event, what it must be, what it was."""


def main() -> None:
    """Print the table, and draw the longest of each, by database."""
    found = json.loads(RESULTS.read_text())
    print(f"| event | must be | {' | '.join(DATABASES)} |\n|{'---|' * (2 + len(DATABASES))}")
    for part, event, must, said in ROWS:
        print(f"| {event} | {must} | {' | '.join(said(found[part][name]) for name in DATABASES)} |")
    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    height = 0.8 / len(DATABASES)
    for number, name in enumerate(DATABASES):
        places = [row + (number - (len(DATABASES) - 1) / 2) * height for row in range(len(EVENTS))]
        seconds = [found[event][name][what] for event, what, _ in EVENTS]
        bars = axes.barh(places, seconds, height, color=DATABASES[name], label=name)
        axes.bar_label(bars, labels=[f" {one:.1f} s" for one in seconds], fontsize=8)
    axes.axvline(LEASE_SECONDS, color="grey", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(EVENTS)), [what for *_, what in EVENTS], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("seconds, the longest of all; dashed: the lease of a group")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    for kind in ("png", "svg"):
        figure.savefig(PICTURE.with_suffix(f".{kind}"), dpi=110)


if __name__ == "__main__":
    main()
