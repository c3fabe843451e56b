"""What `make availability` measured, as a picture: docs/availability.png and .svg."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.availability import LEASE_SECONDS, RESULTS

PICTURE = Path(__file__).parent.parent / "docs" / "availability"
DATABASES = {"SQLite": "#57606a", "PostgreSQL": "#1f6feb", "RabbitMQ + PostgreSQL": "#bf8700"}
EVENTS = (
    ("killed", "longest_until_applied_s", "instance killed, active-active:\nits work is done by others"),
    ("hot", "longest_s", "active group killed, hot spare:\nanswers again"),
    ("warm", "longest_s", "active group killed, warm spare:\nanswers again"),
    ("cold", "longest_s", "nothing runs, one is started:\nanswers"),
    ("canary", "longest_until_applied_s", "5, 25, 100 %, promoted, rolled back:\nlongest wait of a message"),
    ("bad", "longest_s", "a candidate that fails one of ten:\nrolled back"),
)


def main() -> None:
    """Draw the longest of each, by database."""
    found = json.loads(RESULTS.read_text())
    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    names = [name for name in DATABASES if name in found["killed"]]
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        places = [row + (number - (len(names) - 1) / 2) * height for row in range(len(EVENTS))]
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
