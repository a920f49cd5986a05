"""The metrics of several engines as those of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jbatch.engine.metric import Counter, Gauge, Histogram, Metric


def merged(of_each: Sequence[Sequence[Metric]]) -> list[Metric]:
    """Sums, but of shares, which are means. Each engine's must be the same ones in the same order."""
    return [_merged(metrics) for metrics in zip(*of_each, strict=True)]


def _merged(metrics: Sequence[Metric]) -> Metric:
    first = metrics[0]
    if isinstance(first, Histogram):
        histograms = [metric for metric in metrics if isinstance(metric, Histogram)]
        return dataclasses.replace(
            first,
            count=sum(each.count for each in histograms),
            sum=sum(each.sum for each in histograms),
            buckets={bound: sum(each.buckets[bound] for each in histograms) for bound in first.buckets},
        )
    if isinstance(first, Counter):
        return dataclasses.replace(
            first, value=sum(each.value for each in metrics if isinstance(each, Counter))
        )
    assert isinstance(first, Gauge)
    total = sum(each.value for each in metrics if isinstance(each, Gauge))
    return dataclasses.replace(first, value=total / len(metrics) if first.name.endswith("_perc") else total)
