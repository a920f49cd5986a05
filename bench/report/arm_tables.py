"""Tables of arms that fit a narrow screen: many small ones, side by side where there is room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.report import page
from bench.report.arm import Arm

# By what they are about; each is a table of its own: (field, heading).
THEMES: dict[str, tuple[tuple[str, str], ...]] = {
    "throughput": (
        ("max_num_seqs", "at once"),
        ("output_throughput", "tokens/s"),
        ("spread", "spread"),
        ("request_throughput", "requests/s"),
        ("request_goodput", "goodput, requests/s"),
    ),
    "latency, ms": (
        ("p50_ttft_ms", "TTFT p50"),
        ("p99_ttft_ms", "TTFT p99"),
        ("p50_tpot_ms", "TPOT p50"),
        ("p99_tpot_ms", "TPOT p99"),
        ("p50_e2el_ms", "E2EL p50"),
        ("p99_e2el_ms", "E2EL p99"),
    ),
    "counted": (
        ("num_steps", "steps"),
        ("decode_steps", "decode steps"),
        ("slot_steps", "slot-steps"),
        ("slot_use", "slot use"),
        ("padded_share", "padding"),
    ),
    "use": (
        ("kv_use", "KV cache filled of allocated"),
        ("kv_of_contiguous", "pages used of reserved"),
        ("device_busy_share", "device busy"),
        ("floor_share", "of floor"),
    ),
}
SHARES = (
    "spread",
    "slot_use",
    "padded_share",
    "kv_use",
    "kv_of_contiguous",
    "device_busy_share",
    "floor_share",
)
NOT_SCALARS = ("steps", "requests", "repeats", "definition", "label")
ARMS_BESIDE = 4  # columns that fit a narrow screen


def summary(arms: Sequence[Arm]) -> str:
    """The figures that matter, by theme; those that are known of no arm are left out."""
    tables = []
    for theme, fields in THEMES.items():
        shown = [(key, name) for key, name in fields if any(arm.figures.get(key) is not None for arm in arms)]
        rows = [(arm.name, *(_figure(key, arm.figures.get(key)) for key, _ in shown)) for arm in arms]
        if shown:
            tables.append(page.table((theme, *(name for _, name in shown)), rows))
    return page.beside(tables)


def _figure(key: str, value: Any) -> Any:
    return f"{value:.0%}" if key in SHARES and value is not None else value


def definitions(arms: Mapping[str, Any]) -> str:
    """What each arm is."""
    return page.definitions((name, _definition(arm)) for name, arm in arms.items())


def _definition(arm: Mapping[str, Any]) -> str:
    """What an arm is, with what attends and how it is executed, where arms differ in that."""
    made_of = [f"{part}: {arm[part]}" for part in ("attention", "execution") if part in arm]
    return "; ".join((str(arm["definition"]), *made_of))


def every_metric(arms: Sequence[Arm]) -> str:
    """All figures of all arms, a few arms to a table."""
    names = list(dict.fromkeys(key for arm in arms for key in arm.figures if key not in NOT_SCALARS))
    firsts = range(0, len(arms), ARMS_BESIDE)
    return page.beside(_metrics(arms[first : first + ARMS_BESIDE], names) for first in firsts)


def _metrics(arms: Sequence[Arm], names: Sequence[str]) -> str:
    rows = [(name, *(_scalar(arm.figures.get(name)) for arm in arms)) for name in names]
    repeats = ("repeats, tokens/s", *(", ".join(f"{r:.5g}" for r in arm.figures["repeats"]) for arm in arms))
    return page.table(("metric", *(arm.name for arm in arms)), [*rows, repeats])


def _scalar(value: Any) -> Any:
    return value if value is None or isinstance(value, (int, float, str)) else str(value)


def manifest(manifest: Mapping[str, Any], workload: Mapping[str, Any]) -> str:
    """The machine, the versions and the settings."""
    return page.settings(page.flatten({**manifest, "workload": workload}))
