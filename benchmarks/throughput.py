"""Throughput: the contenders empty a full queue, alternately."""

from dataclasses import dataclass, field
from statistics import median

from benchmarks.contender import Kind
from benchmarks.cpu import Usage
from benchmarks.database import Database
from benchmarks.work import Order, Style
from benchmarks.worker import FlowKit


@dataclass
class Speed:
    """The results of one contender in each round."""

    count: int
    runs: list[Usage] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Messages per second."""
        return [self.count / run.wall for run in self.runs]

    def results(self) -> dict[str, object]:
        """Medians, and between what they lie."""
        return {
            "messages_per_second": round(median(self.rates)),
            "messages_per_second_range": [round(min(self.rates)), round(max(self.rates))],
            "worker_cpu_us_per_message": round(median(run.worker for run in self.runs) / self.count * 1e6, 1),
            "servers_cpu_us_per_message": round(median(run.servers for run in self.runs) / self.count * 1e6, 1),
        }


def throughput(database: Database, style: Style, count: int, rounds: int) -> dict[str, object]:
    """Messages per second and CPU per message. The ratio is taken within each round, for machines drift."""
    naive, flowkit = Speed(count), Speed(count)
    for _ in range(rounds):
        naive.runs.append(run(database.naive, database, style, count))
        flowkit.runs.append(run(FlowKit, database, style, count))
    ratios = [mine / theirs for mine, theirs in zip(flowkit.rates, naive.rates, strict=True)]
    return {
        "naive": naive.results(),
        "flowkit": flowkit.results(),
        "ratio": round(median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def run(kind: Kind, database: Database, style: Style, count: int) -> Usage:
    """One run of one contender, on a fresh place. Raises Lost unless it did exactly this work."""
    contender = kind(database.fresh(), style)
    try:
        contender.send([Order(id=number) for number in range(count)])
        usage = contender.run(count)
        contender.check(count)
    finally:
        contender.close()
    return usage
