"""An engine's metrics in the registry of a process that serves its own, with the package prometheus-client:

REGISTRY.register(JBatchCollector(llm))
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from jbatch.engine.metric import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from jbatch.llm import LLM

FAMILIES: dict[type, Any] = {
    Counter: CounterMetricFamily,
    Gauge: GaugeMetricFamily,
    Histogram: HistogramMetricFamily,
}


class JBatchCollector(Collector):
    """What `llm.get_metrics()` gives, whenever the registry is read."""

    def __init__(self, llm: LLM):
        self._llm = llm

    def describe(self) -> list[Metric]:
        """Nothing: the registry need not read an engine to take this in."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Families of metrics, as prometheus-client has them."""
        for name, group in groupby(self._llm.get_metrics(), lambda metric: metric.name):
            metrics = list(group)
            new_family = FAMILIES[type(metrics[0])]
            family = new_family(name, metrics[0].documentation, labels=list(metrics[0].labels))
            for metric in metrics:
                labels = list(metric.labels.values())
                if isinstance(metric, Histogram):
                    family.add_metric(labels, list(metric.buckets.items()), metric.sum)
                elif isinstance(metric, Counter | Gauge):
                    family.add_metric(labels, metric.value)
            yield family
