"""Metrics as a caller reads them: the types of vLLM's `LLM.get_metrics()`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """What all kinds have."""

    name: str  # as vLLM's, with the prefix "jbatch:"
    documentation: str
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counter(Metric):
    """What only grows."""

    value: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gauge(Metric):
    """What goes up and down."""

    value: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Histogram(Metric):
    """Observations, counted by size. `buckets` has for each upper bound, as text, how many were at most so
    large; the last one, "+Inf", has all."""

    count: int
    sum: float
    buckets: Mapping[str, int]
