"""A chart of a service's throughput and response times while its instances were broken."""

from math import isfinite
from pathlib import Path

from flowkit.errors import ConfigError
from flowkit.sla.agreement import Agreement
from flowkit.sla.verification import Verdict


def draw(verdict: Verdict, agreement: Agreement, path: Path) -> None:
    """Draw requests a second and response times in ms, with the events, as SVG or PNG by the suffix of `path`. Blocks.
    Raises ConfigError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("--chart needs matplotlib; pip install 'flowkit-runtime[charts]'") from None
    figure = Figure(figsize=(10, 5), layout="constrained")
    rates, times = figure.subplots(2, sharex=True)
    begins = [one.begin for one in verdict.windows]
    rates.step(begins, [one.tps for one in verdict.windows], where="post", label="answered")
    rates.axhline(agreement.normal.tps, color="green", linewidth=0.8, label="normal")
    rates.axhline(agreement.minimum.tps, color="red", linewidth=0.8, label="minimum")
    rates.set_ylim(bottom=0)
    rates.set_ylabel("requests a second")
    times.step(
        begins, [one.response * 1e3 if isfinite(one.response) else None for one in verdict.windows], where="post"
    )
    times.axhline(agreement.normal.response * 1e3, color="green", linewidth=0.8)
    times.axhline(agreement.minimum.response * 1e3, color="red", linewidth=0.8)
    times.set_yscale("log")
    times.set_ylabel(f"ms, {agreement.normal.percentile:g} % of them")
    times.set_xlabel("seconds")
    for event in verdict.events:
        for axes in (rates, times):
            axes.axvspan(event.begin, event.end, alpha=0.15, color="grey")
        rates.annotate(event.what, (event.begin, 0), xytext=(2, 4), textcoords="offset points", fontsize=8)
    rates.legend(loc="lower right")
    figure.savefig(path)
