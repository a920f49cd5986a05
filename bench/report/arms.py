"""The sections of a report on results with arms: batching, compare, throughput, latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.ladder.arms import ARMS
from bench.ladder.gains import BASELINES, CLAIMED_OVER_STATIC, CLAIMS, TRUSTED_RANGE, relative_range
from bench.report import figures, latency_parts, page, slot_timeline, sweep
from bench.report.figures import Arm, columns, to_png
from bench.report.page import Picture, Section

SUMMARY = (
    ("max_num_seqs", "at once"),
    ("output_throughput", "output tokens/s"),
    ("spread", "spread"),
    ("total_token_throughput", "total tokens/s"),
    ("request_throughput", "requests/s"),
    ("request_goodput", "goodput, requests/s"),
    ("p50_ttft_ms", "TTFT p50, ms"),
    ("p99_ttft_ms", "TTFT p99, ms"),
    ("p50_tpot_ms", "TPOT p50, ms"),
    ("p99_tpot_ms", "TPOT p99, ms"),
    ("p50_e2el_ms", "E2EL p50, ms"),
    ("p99_e2el_ms", "E2EL p99, ms"),
    ("num_steps", "steps"),
    ("decode_steps", "steps that decode"),
    ("slot_steps", "slot-steps"),
    ("slot_use", "slot use"),
    ("padded_share", "prefill padding"),
    ("kv_use", "KV slots used of allocated"),
    ("kv_of_contiguous", "KV in use of contiguous"),
    ("device_busy_share", "device busy"),
    ("floor_share", "share of the floor"),
)
SHARES = (
    "spread",
    "slot_use",
    "padded_share",
    "kv_use",
    "kv_of_contiguous",
    "device_busy_share",
    "floor_share",
)
PRAISED = ("continuous", "jbatch", "replay-jbatch")
NOT_SCALARS = ("steps", "requests", "repeats", "definition", "label")


def section(file: Path, content: dict[str, Any]) -> Section:
    """The section on one file: all there is to show of it."""
    arms, not_run = read_arms(content)
    manifest, workload = content["manifest"], content["workload"]
    title = f"{content['kind']}: {workload['name']}, {manifest['model']} ({label(manifest)})"
    parts: list[str | Picture] = [page.paragraph(describe(workload))]
    if arms:
        parts += [page.heading("Throughput, latency, use", 3), _summary(arms), *latency_parts.table(arms)]
    if not_run:
        parts.append(page.table(("not run", "why"), not_run))
    parts += _gains(content) + pictures(file.stem, content, arms)
    parts += [page.heading("What each arm is", 3), _definitions(content["arms"])]
    parts.append(page.details("every metric", _every_metric(arms)))
    parts.append(page.details("the machine, the versions and the settings", _manifest(manifest, workload)))
    return Section(title, file.stem, parts)


MAKERS: dict[str, Callable[[Path, dict[str, Any]], Section]] = dict.fromkeys(
    ("batching", "compare", "throughput", "latency"), section
)


def read_arms(content: Mapping[str, Any]) -> tuple[list[Arm], list[tuple[str, str]]]:
    """The arms that ran, and (name, why not) of the others."""
    ran, not_run = [], []
    for name, figure in content["arms"].items():
        if "not_run" in figure:
            not_run.append((name, str(figure["not_run"])))
            continue
        steps = columns(figure.get("steps", ()), content["step_fields"])
        requests = columns(figure.get("requests", ()), content["request_fields"])
        ran.append(Arm(name, figure, steps, requests))
    return ran, not_run


def label(manifest: Mapping[str, Any]) -> str:
    """What the figures are worth: the device that they were measured on, or why they say little."""
    if manifest.get("compute_capability") is not None:
        return str(manifest["device"])
    if manifest.get("model") == "demo":
        return "CPU, demo model: counts are meaningful, times are mostly overhead"
    return "CPU: counts are meaningful, times say nothing about a GPU"


def describe(workload: Mapping[str, Any]) -> str:
    """A workload, in two sentences."""
    scales = ", ".join(
        f"{name.replace('_', ' ')} {page.number(value)}" for name, value in workload["scales"].items()
    )
    return (
        f"{workload['num_prompts']} requests with {workload['num_prompt_tokens']:,} prompt tokens and "
        f"{workload['num_output_tokens']:,} output tokens; {scales}; seed {workload['seed']}, workload hash "
        f"{workload['hash']}. Output lengths are forced, so the work is the same in every arm."
    )


def _summary(arms: Sequence[Arm]) -> str:
    shown = [(key, name) for key, name in SUMMARY if any(arm.figures.get(key) is not None for arm in arms)]
    rows = [(arm.name, *(_figure(key, arm.figures.get(key)) for key, _ in shown)) for arm in arms]
    return page.table(("arm", *(name for _, name in shown)), rows)


def _figure(key: str, value: Any) -> Any:
    return f"{value:.0%}" if key in SHARES and value is not None else value


def _gains(content: Mapping[str, Any]) -> list[str | Picture]:
    """The gains, each with the definition of its static baseline, or why none is named."""
    gains = content.get("gains") or {}
    if "refused" in gains:
        return [page.heading("Gains", 3), page.paragraph(f"No gain is named: {gains['refused']}.")]
    names = sorted(gains, key=lambda name: ("_steps" in name, "unbatched" in name))
    if not names:
        return []
    scenario, arms = content["workload"]["name"], content["arms"]
    ranges = {name: repeat_ratios(name, arms) for name in names}
    rows = [
        (n, _ratio(gains[n]), _range(ranges[n]), _claimed(n, scenario), _baseline(n, arms)) for n in names
    ]
    parts: list[str | Picture] = [page.heading("Gains", 3), page.paragraph(GAINS_TEXT)]
    worst = max((relative_range(values) or 0.0 for values in ranges.values()), default=0.0)
    if worst > TRUSTED_RANGE:
        parts.append(page.paragraph(DOUBT.format(worst), label=True))
    return [*parts, page.table(GAINS_HEADER, rows)]


GAINS_TEXT = (
    "Of output tokens/s, but where steps are named: those are counted. A slot-step is a row of one. The "
    "claimed figures are for LLaMA-7B on a GPU, at other sizes than here."
)
GAINS_HEADER = (
    "ratio",
    "measured",
    "least to most of the repeats",
    "claimed by others (LLaMA-7B on a GPU)",
    "the baseline, as defined here",
)
DOUBT = (
    "Between repeats timed gains differed by up to {:.0%}: too much for a timed gain to be trusted; what was "
    "counted stands."
)


def repeat_ratios(name: str, arms: Mapping[str, Any]) -> list[float]:
    """A ratio such as "continuous / static", of output tokens/s within each repeat; empty for ratios of what
    is counted."""
    over, _, under = name.partition(" / ")
    if not {over, under} <= arms.keys():
        return []
    pairs = zip(arms[over].get("repeats", ()), arms[under].get("repeats", ()), strict=False)
    return [a / b for a, b in pairs]


def _range(values: Sequence[float]) -> str | None:
    """From the least to the most, and whether that is too much to trust."""
    if not values:
        return None
    if len(values) == 1:
        return "one repeat: no spread is known"
    doubt = " (not trusted)" if (relative_range(values) or 0.0) > TRUSTED_RANGE else ""
    return f"{min(values):.2f} to {max(values):.2f} x{doubt}"


def _ratio(value: Any) -> str:
    return f"none: {value['refused']}" if isinstance(value, Mapping) else f"{value:.2f} x"


def over_unbatched(contents: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of scenario x gain over unbatched, of the files in which gains are named; nothing where there
    are fewer than two."""
    named = [c for c in contents if c["kind"] == "batching" and "refused" not in (c.get("gains") or {})]
    rows = []
    for content in named:
        name, gains = content["workload"]["name"], content.get("gains") or {}
        pairs = ((gains.get(ratio), _claimed(ratio, name)) for ratio in OVER_UNBATCHED)
        cells = (None if gain is None else _ratio(gain) + _in_brackets(claim) for gain, claim in pairs)
        rows.append((name, str(content["manifest"]["model"]), *cells))
    if len(rows) < 2:
        return []
    text = (
        "Of output tokens/s. In brackets: claimed by others, for LLaMA-7B on a GPU, at other sizes than here."
    )
    header = ("scenario", "model", *(ratio.partition(" / ")[0] for ratio in OVER_UNBATCHED))
    return [
        page.heading("Gains over unbatched, of all files"),
        page.paragraph(text),
        page.table(header, rows),
    ]


OVER_UNBATCHED = tuple(f"{name} / unbatched" for name in ARMS if name != "unbatched")


def _in_brackets(claim: str | None) -> str:
    return "" if claim is None else f" ({claim})"


def _claimed(ratio: str, scenario: str) -> str | None:
    """What is claimed elsewhere, for a static batch that was left undefined."""
    over, _, under = ratio.partition(" / ")
    if over == "continuous" and under in BASELINES:
        return f"{CLAIMED_OVER_STATIC} x"
    if under == "unbatched" and over in ("static", "continuous") and scenario in CLAIMS:
        return f"{getattr(CLAIMS[scenario], over)} x"
    return None


def _baseline(ratio: str, arms: Mapping[str, Any]) -> str:
    """The definitions of the arms in a ratio such as "continuous / static-padded", but for the one that is
    praised."""
    names = [word for word in ratio.split() if word in arms and word not in PRAISED]
    return "; ".join(f"{name}: {arms[name]['definition']}" for name in names)


def pictures(stem: str, content: Mapping[str, Any], arms: Sequence[Arm]) -> list[str | Picture]:
    """The pictures that can be drawn of the arms that have the figures for them."""
    timed = [arm for arm in arms if arm.figures.get("output_throughput") is not None]
    served = [arm for arm in arms if arm.requests.get("end")]
    stepped = [arm for arm in served if arm.steps.get("kind")]
    shown = slot_timeline.choose(stepped)
    num_pages = content["manifest"].get("num_pages")
    drawn: list[tuple[str, str, int, Figure | None]] = []
    if timed:
        drawn.append(("throughput", "Output tokens per second of each arm.", 1, figures.throughput(timed)))
    if shown:
        drawn.append(("slots", SLOTS_CAPTION, 2, slot_timeline.draw(shown)))
    if served:
        drawn.append(("latency", LATENCY_CAPTION, 3, figures.latencies(served)))
    if split := latency_parts.known(arms):
        drawn.append(("parts", latency_parts.CAPTION, 4, latency_parts.draw(split)))
    if stepped:
        drawn.append(("tokens", TOKENS_CAPTION, 5, figures.tokens_over_time(stepped)))
        drawn.append(("pages", PAGES_CAPTION, 6, figures.pages(stepped, num_pages)))
        drawn.append(("floor", FLOOR_CAPTION, 7, figures.step_times(stepped)))
    if curves := sweep.curves(content):
        drawn.append(("sweep", sweep.CAPTION, 8, sweep.draw(curves)))
    return [
        Picture(f"{stem}-{name}.png", to_png(figure), caption, rank)
        for name, caption, rank, figure in drawn
        if figure is not None
    ]


SLOTS_CAPTION = (
    "Who computed where. A row is a slot, a column a step, a colour a request (colours repeat). A slot that "
    "is idle in a decode step costs nothing, but where it is padding of the bucket."
)
LATENCY_CAPTION = "Share of the requests that waited at most so long."
TOKENS_CAPTION = "Output tokens over time. Where a line flattens, the batch has emptied."
PAGES_CAPTION = (
    "Pages of the KV cache in use over time. The line: what the same sequences would hold in a cache without "
    "pages, which reserves max_model_len for each."
)
FLOOR_CAPTION = (
    "Each step's time on the device over the least that its useful work can take, at the rates measured in "
    "the same run: weights and cache over the read bandwidth, or products over the rate of matrix products. "
    "A step's time begins when the result before it was taken in: where the host was late with that one, it "
    "can fall below the floor."
)


def _definitions(arms: Mapping[str, Any]) -> str:
    return page.definitions((name, _definition(arm)) for name, arm in arms.items())


def _definition(arm: Mapping[str, Any]) -> str:
    """What an arm is, with what attends and how it is executed, where arms differ in that."""
    made_of = [f"{part}: {arm[part]}" for part in ("attention", "execution") if part in arm]
    return "; ".join((str(arm["definition"]), *made_of))


def _every_metric(arms: Sequence[Arm]) -> str:
    names = list(dict.fromkeys(key for arm in arms for key in arm.figures if key not in NOT_SCALARS))
    rows = [(name, *(_scalar(arm.figures.get(name)) for arm in arms)) for name in names]
    repeats = ("repeats, tokens/s", *(", ".join(f"{r:.5g}" for r in arm.figures["repeats"]) for arm in arms))
    return page.table(("metric", *(arm.name for arm in arms)), [*rows, repeats])


def _scalar(value: Any) -> Any:
    return value if value is None or isinstance(value, (int, float, str)) else str(value)


def _manifest(manifest: Mapping[str, Any], workload: Mapping[str, Any]) -> str:
    rows = page.flatten({**manifest, "workload": workload})
    return page.table(
        ("", "value"), [(name, str(value) if value is not None else None) for name, value in rows]
    )
