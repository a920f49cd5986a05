"""What a tuned engine should be good at, and how good it is, simulated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from bench.measure import measures
from bench.measure.drive import Run

AimName = Literal["throughput", "p99-ttft", "goodput"]
MARGIN = 0.005  # by which another value must be better: less is chance


class Figures(NamedTuple):
    """Of one pass. Times are milliseconds of the simulated clock, rates per second of it."""

    output_throughput: float
    p99_ttft: float
    p99_itl: float
    mean_e2el: float
    goodput: float  # requests that keep all limits; without limits, all
    num_preempted: int


class Aim(NamedTuple):
    """What is to be as good as possible.

    Attributes:
      floor: p99-ttft: share of the default's throughput that must be kept.
      limits: goodput: milliseconds, by latency.
    """

    name: AimName
    floor: float = 0.95
    limits: Mapping[str, float] = {}

    def value(self, figures: Figures) -> float:
        """More is better."""
        if self.name == "throughput":
            return figures.output_throughput
        return figures.goodput if self.name == "goodput" else 1.0 / max(figures.p99_ttft, 1e-9)

    def allows(self, figures: Figures, default: Figures) -> bool:
        """Whether enough throughput is left."""
        return self.name != "p99-ttft" or figures.output_throughput >= self.floor * default.output_throughput

    def gain(self, figures: Figures, default: Figures) -> float:
        """How many times as good as the default."""
        return self.value(figures) / max(self.value(default), 1e-9)

    def improves(self, figures: Figures, best: Figures, default: Figures) -> bool:
        """Whether a candidate is better than the best so far by more than chance."""
        return self.allows(figures, default) and self.value(figures) > (1 + MARGIN) * self.value(best)


def figures_of(run: Run, limits: Mapping[str, float]) -> Figures:
    """What came of a pass."""
    rates, latencies = measures.rates(run, (), limits), measures.latencies(run)
    assert latencies.ttft is not None and latencies.e2el is not None  # every request has them
    return Figures(
        output_throughput=rates.output_throughput,
        p99_ttft=latencies.ttft.p99,
        p99_itl=0.0 if latencies.itl is None else latencies.itl.p99,
        mean_e2el=latencies.e2el.mean,
        goodput=rates.request_goodput if rates.request_goodput is not None else rates.request_throughput,
        num_preempted=run.summary.num_preempted,
    )
