"""The three figures that a reader sees first, each beside what it has to be compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bench.ladder.gains import BASELINES, TRUSTED_RANGE, relative_range
from bench.report import gains
from bench.report.arm import Arm
from bench.report.page import Number, number

SHOWN = 3


class Measure(NamedTuple):
    """What may be shown large: a field of an arm, and which of two values is the better one."""

    field: str
    unit: str
    best: Callable[..., Any]
    ratio: str = ""  # the name of a gain, of `over` and `under`


MEASURES = (
    Measure("num_steps", "steps", min, "num_steps {under} / {over}"),
    Measure("output_throughput", "output tokens/s", max, "{over} / {under}"),
    Measure("p99_e2el_ms", "ms E2EL p99", min),
    Measure("p50_e2el_ms", "ms E2EL p50", min),
    Measure("p50_ttft_ms", "ms TTFT p50", min),
)


def numbers(content: Mapping[str, Any], arms: Sequence[Arm]) -> list[Number]:
    """Three figures of the arm that is praised, or of the only one; none where there is no such arm."""
    praised = [arm for arm in arms if arm.name in gains.PRAISED] or (list(arms) if len(arms) == 1 else [])
    if not praised:
        return []
    arm = praised[0]
    shown = [m for m in MEASURES if arm.figures.get(m.field) is not None]
    return [_number(measure, arm, content, arms) for measure in shown[:SHOWN]]


def _number(measure: Measure, arm: Arm, content: Mapping[str, Any], arms: Sequence[Arm]) -> Number:
    others = [other for other in arms if other is not arm and other.figures.get(measure.field) is not None]
    rivals = [other for other in others if other.name in BASELINES]
    left = [other for other in others if other not in rivals]
    if left:  # whoever comes closest, or is ahead
        rivals.append(measure.best(left, key=lambda other: other.figures[measure.field]))
    beside, doubted = [], False
    for rival in rivals:
        doubt = measure.field != "num_steps" and _spread(arm, rival, content) > TRUSTED_RANGE
        gain = "" if doubt else _gain(measure, arm, rival, content.get("gains") or {})
        beside.append(f"{rival.name}: {number(rounded(rival.figures[measure.field]))}{gain}")
        doubted = doubted or doubt
    if doubted:
        beside.append("not to be trusted: repeats differ too much")
    return Number(f"{measure.unit}, {arm.name}", number(rounded(arm.figures[measure.field])), beside)


def _spread(arm: Arm, rival: Arm, content: Mapping[str, Any]) -> float:
    """By how much the ratio of two arms differs between repeats."""
    return relative_range(gains.repeat_ratios(f"{arm.name} / {rival.name}", content["arms"])) or 0.0


def rounded(value: float) -> float:
    """A figure of a measurement: from ten up, without digits after the point."""
    return round(value) if value >= 10 else value


def _gain(measure: Measure, arm: Arm, rival: Arm, named: Mapping[str, Any]) -> str:
    value = named.get(measure.ratio.format(over=arm.name, under=rival.name))
    return f", gain {value:.2f} x" if isinstance(value, (int, float)) else ""
