"""The section of a report on a result with arms: batching, compare, throughput, latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.report import arm_tables, figures, gains, headline, latency_parts, page, slot_timeline, sweep
from bench.report.arm import Arm, read_arms
from bench.report.page import Png, Section
from bench.report.svg import Picture

Parts = list[str | Picture | Png]


def section(file: Path, content: dict[str, Any]) -> Section:
    """The section on one file: all there is to show of it."""
    arms, not_run = read_arms(content)
    manifest, workload = content["manifest"], content["workload"]
    title = f"{content['kind']}: {workload['name']}, {manifest['model']} ({label(manifest)})"
    parts: Parts = [page.numbers(headline.numbers(content, arms)), page.paragraph(describe(workload), "soft")]
    parts += pictures(file.stem, content, arms)
    if arms:
        parts += [page.heading("In figures", 3), arm_tables.summary(arms)]
    if not_run:
        parts.append(page.table(("not run", "why"), not_run))
    parts += gains.parts(content) + _where_time_goes(file.stem, content, arms)
    parts += [page.heading("What each arm is", 3), arm_tables.definitions(content["arms"])]
    parts.append(page.details("every metric", arm_tables.every_metric(arms)))
    settings = arm_tables.manifest(manifest, workload)
    parts.append(page.details("the machine, the versions and the settings", settings))
    return Section(title, file.stem, parts)


MAKERS: dict[str, Callable[[Path, dict[str, Any]], Section]] = dict.fromkeys(
    ("batching", "compare", "throughput", "latency"), section
)


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


def pictures(stem: str, content: Mapping[str, Any], arms: Sequence[Arm]) -> list[Picture]:
    """What is seen first: who computed where, how fast each arm is, and how long requests waited."""
    timed = [arm for arm in arms if arm.figures.get("output_throughput") is not None]
    served = [arm for arm in arms if arm.requests.get("end")]
    drawn = []
    if shown := slot_timeline.choose(_stepped(arms)):
        drawn.append(slot_timeline.draw(shown, f"{stem}-slots.svg"))
    if timed:
        drawn.append(figures.throughput(timed, f"{stem}-throughput.svg"))
    if served:
        drawn.append(figures.latencies(served, f"{stem}-latency.svg"))
    return drawn


def _stepped(arms: Sequence[Arm]) -> list[Arm]:
    """The arms whose requests and steps are known."""
    return [arm for arm in arms if arm.requests.get("end") and arm.steps.get("kind")]


def _where_time_goes(stem: str, content: Mapping[str, Any], arms: Sequence[Arm]) -> Parts:
    """The other pictures, as far as there are figures for them."""
    parts: Parts = []
    if split := latency_parts.known(arms):
        parts += [page.heading("Where the latency goes", 3), page.paragraph(latency_parts.TEXT)]
        parts += [latency_parts.draw(split, f"{stem}-parts.svg"), latency_parts.tables(split)]
    if stepped := _stepped(arms):
        parts += [page.heading("Step by step", 3), figures.tokens_over_time(stepped, f"{stem}-tokens.svg")]
        parts.append(figures.pages(stepped, content["manifest"].get("num_pages"), f"{stem}-pages.svg"))
        if (floor := figures.step_times(stepped, f"{stem}-floor.svg")) is not None:
            parts.append(floor)
    if curves := sweep.curves(content):
        parts += [page.heading("Batch sizes", 3), sweep.draw(curves, f"{stem}-sweep.svg")]
    return parts
