"""Gains in a report: each beside its baseline, the baseline's definition, and what others claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.ladder.arms import ARMS
from bench.ladder.gains import BASELINES, CLAIMED_OVER_STATIC, CLAIMS, TRUSTED_RANGE, relative_range
from bench.report import page
from bench.report.page import Noted

PRAISED = ("continuous", "jbatch", "replay-jbatch")
OVER_UNBATCHED = tuple(f"{name} / unbatched" for name in ARMS if name != "unbatched")
COUNTED = {"num_steps": "steps, counted", "slot_steps": "slot-steps, counted"}
TEXT = (
    "Of output tokens/s, with the least and the most of the repeats; of steps and slot-steps (a row of a "
    "decode step) as counted: how many times as many the baseline needs. The claimed figures are for "
    "LLaMA-7B on a GPU, at other sizes than here."
)
DOUBT = (
    "Between repeats timed gains differed by up to {:.0%}: too much for a timed gain to be trusted; what was "
    "counted stands."
)


def parts(content: Mapping[str, Any]) -> list[str]:
    """The gains, each with the definition of its baseline, or why none is named."""
    gains = content.get("gains") or {}
    if "refused" in gains:
        return [page.heading("Gains", 3), page.paragraph(f"No gain is named: {gains['refused']}.")]
    timed = [name for name in gains if name.split(" ")[0] not in COUNTED]
    if not timed:
        return []
    scenario, arms = content["workload"]["name"], content["arms"]
    ranges = {name: repeat_ratios(name, arms) for name in timed}
    worst = max((relative_range(values) or 0.0 for values in ranges.values()), default=0.0)
    shown = [page.heading("Gains", 3), page.paragraph(TEXT)]
    if worst > TRUSTED_RANGE:
        shown.append(page.paragraph(DOUBT.format(worst), "label"))
    counted = [field for field in COUNTED if any(name.startswith(field) for name in gains)]
    header = ("gain", "tokens/s", "claimed by others", *(COUNTED[field] for field in counted))
    rows = {}
    for name in sorted(timed, key=lambda name: "unbatched" in name):
        over, _, under = name.partition(" / ")
        steps = (gains.get(f"{field} {under} / {over}") for field in counted)
        cells = [None if value is None else ratio(value) for value in steps]
        measured = "; ".join(filter(None, (ratio(gains[name]), _range(ranges[name]))))
        rows[name] = (Noted(name, _baseline(name, arms)), measured, claimed(name, scenario), *cells)
    praised = [row for name, row in rows.items() if name.split(" ")[0] in PRAISED]
    others = [row for name, row in rows.items() if name.split(" ")[0] not in PRAISED]
    shown.append(page.table(header, praised))
    if others:
        shown.append(page.details("gains of the other arms", page.table(header, others)))
    return shown


def repeat_ratios(name: str, arms: Mapping[str, Any]) -> list[float]:
    """A ratio such as "continuous / static", of output tokens/s within each repeat; empty where one of them
    was not run."""
    over, _, under = name.partition(" / ")
    if not {over, under} <= arms.keys():
        return []
    pairs = zip(arms[over].get("repeats", ()), arms[under].get("repeats", ()), strict=False)
    return [a / b for a, b in pairs]


def _range(values: Sequence[float]) -> str:
    """From the least to the most, and whether that is too much to trust."""
    if not values:
        return ""
    if len(values) == 1:
        return "one repeat: no spread is known"
    doubt = " (not trusted)" if (relative_range(values) or 0.0) > TRUSTED_RANGE else ""
    return f"{min(values):.2f} to {max(values):.2f} x{doubt}"


def ratio(value: Any) -> str:
    """A gain, or why there is none."""
    return f"none: {value['refused']}" if isinstance(value, Mapping) else f"{value:.2f} x"


def claimed(name: str, scenario: str) -> str | None:
    """What is claimed elsewhere, for a static batch that was left undefined."""
    over, _, under = name.partition(" / ")
    if over == "continuous" and under in BASELINES:
        return f"{CLAIMED_OVER_STATIC} x"
    if under == "unbatched" and over in ("static", "continuous") and scenario in CLAIMS:
        return f"{getattr(CLAIMS[scenario], over)} x"
    return None


def _baseline(name: str, arms: Mapping[str, Any]) -> str:
    """The definitions of the arms in a ratio such as "continuous / static-padded", but for the one that is
    praised."""
    names = [word for word in name.split() if word in arms and word not in PRAISED]
    return "; ".join(f"{name}: {arms[name]['definition']}" for name in names)


def over_unbatched(contents: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of scenario x gain over unbatched, of the files in which gains are named; nothing where there
    are fewer than two."""
    named = [c for c in contents if c["kind"] == "batching" and "refused" not in (c.get("gains") or {})]
    shown = [name for name in OVER_UNBATCHED if any(name in (c.get("gains") or {}) for c in named)]
    rows = []
    for content in named:
        name, gains = content["workload"]["name"], content.get("gains") or {}
        pairs = ((gains.get(ratio), claimed(ratio, name)) for ratio in shown)
        cells = (None if gain is None else ratio(gain) + _in_brackets(claim) for gain, claim in pairs)
        rows.append((name, str(content["manifest"]["model"]), *cells))
    if len(rows) < 2:
        return []
    text = (
        "Of output tokens/s. In brackets: claimed by others, for LLaMA-7B on a GPU, at other sizes than here."
    )
    header = ("scenario", "model", *(name.partition(" / ")[0] for name in shown))
    return [
        page.heading("Gains over unbatched, of all files"),
        page.paragraph(text),
        page.table(header, rows),
    ]


def _in_brackets(claim: str | None) -> str:
    return "" if claim is None else f" ({claim})"
