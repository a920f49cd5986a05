"""Metrics in Prometheus' text form, for a file or a page that Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby

from jbatch.engine.metric import Counter, Gauge, Histogram, Metric


def to_text(metrics: Iterable[Metric]) -> str:
    """Each metric with its help and type; those of one name stand together."""
    groups = (list(group) for _, group in groupby(metrics, lambda metric: metric.name))
    return "".join(f"{line}\n" for group in groups for line in _lines(group))


def _lines(group: list[Metric]) -> list[str]:
    first = group[0]
    name = f"{first.name}_total" if isinstance(first, Counter) else first.name
    kind = type(first).__name__.lower()
    lines = [f"# HELP {name} {first.documentation}", f"# TYPE {name} {kind}"]
    for metric in group:
        lines += _samples(name, metric)
    return lines


def _samples(name: str, metric: Metric) -> list[str]:
    if isinstance(metric, Counter | Gauge):
        return [f"{name}{_labels(metric.labels)} {metric.value!r}"]
    assert isinstance(metric, Histogram)
    lines = [
        f"{name}_bucket{_labels({**metric.labels, 'le': bound})} {count}"
        for bound, count in metric.buckets.items()
    ]
    labels = _labels(metric.labels)
    return [*lines, f"{name}_sum{labels} {metric.sum!r}", f"{name}_count{labels} {metric.count}"]


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"
