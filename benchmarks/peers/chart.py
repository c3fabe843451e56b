"""Draws the results of `make bench-peers` for the README: docs/explanation/performance.png and .svg."""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import Patch

from benchmarks.peers.__main__ import RESULTS

PICTURE = Path(__file__).parent.parent.parent / "docs" / "explanation" / "performance"
OURS, HAND, RELIABLE, NOTHING = "#1f6feb", "#57606a", "#bf8700", "#d8dee4"
LEGEND = {
    "FlowKit, reliable": OURS,
    "by hand, reliable": HAND,
    "others, made reliable in their handlers": RELIABLE,
    "others, a handler that does nothing": NOTHING,
}
HANDLERS = {"none": "no SQL of its own", "add": "db.add", "statement": "a statement of its own", "": "does nothing"}


def colour(line: dict[str, Any]) -> str:
    if line["contender"] == "FlowKit":
        return OURS
    if line["contender"].startswith("by hand"):
        return HAND
    return RELIABLE if line["work"] == "reliable" else NOTHING


def main() -> None:
    """Draw one panel for each database."""
    found = json.loads(RESULTS.read_text())
    contests = found["contests"]
    sizes = [len(one["entries"]) for one in contests.values()]
    figure, panels = pyplot.subplots(
        len(contests), figsize=(10, 1.5 + 0.27 * sum(sizes)), height_ratios=sizes, squeeze=False, layout="constrained"
    )
    for (name, one), (panel,) in zip(contests.items(), panels, strict=True):
        lines = sorted(one["entries"], key=lambda line: line["messages_per_second"])
        rates = [line["messages_per_second"] for line in lines]
        labels = [f"{line['contender']}: {HANDLERS[line['style']]}" for line in lines]
        bars = panel.barh(labels, rates, color=[colour(line) for line in lines])
        panel.bar_label(bars, labels=[f" {rate:,}" for rate in rates], fontsize=8)
        panel.set_title(f"{name} ({one['version']}): messages per second, one worker", loc="left", fontsize=10)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.1, y=0.01)
    shades = [Patch(color=shade, label=what) for what, shade in LEGEND.items()]
    figure.legend(handles=shades, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    for kind in ("png", "svg"):
        figure.savefig(PICTURE.with_suffix(f".{kind}"), dpi=110)


if __name__ == "__main__":
    main()
