"""The section of a report on the policy lab: policies, predictors and admissions on a simulated workload."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.report import bars, page
from bench.report.bars import Bar
from bench.report.colours import BLUE, GREY, ORANGE
from bench.report.page import Png, Section
from bench.report.svg import Picture
from jbatch.cli.terms import MEANINGS

NO_QUEUE = 0.05  # share of steps in which a request waited, below which policies cannot matter
NO_QUEUE_TEXT = "No queue formed: policies cannot matter here. Offer more load, or run fewer at once."
TERMS = ("makespan", "E2EL", "TTFT", "limits kept", "fairness", "preempted", "recomputed", "regret")
BARS = (
    ("Mean latency", "mean_e2el", BLUE),
    ("p99 latency", "p99_e2el", ORANGE),
    ("Makespan", "makespan", GREY),
)

Outcome = Mapping[str, Any]  # as a file has it: the fields of bench.simulate.policies.Outcome


def section(file: Path, content: dict[str, Any]) -> Section:
    """The section on one file."""
    outcomes, workload = content["outcomes"], content["workload"]
    simulated = content.get("simulated", {})
    described = (
        f"{workload['name']}: {workload['num_prompts']} requests with {workload['num_prompt_tokens']:,} "
        f"prompt tokens and {workload['num_output_tokens']:,} output tokens, seed {workload['seed']}."
    )
    if simulated:
        described += (
            f" Simulated: {simulated['model']} on {simulated['device']}; {simulated['max_num_seqs']} "
            f"sequences at once, {simulated['num_pages'] - 1} pages."
        )
    parts: list[str | Picture | Png] = [page.paragraph(described, "soft")]
    if not queued(outcomes):
        parts.append(page.paragraph(NO_QUEUE_TEXT))
    parts += [draw(outcomes, title, name, colour, file.stem) for title, name, colour in BARS]
    parts += [_table(outcomes), page.definitions((term, MEANINGS[term]) for term in TERMS)]
    return Section(f"Policies: {workload['name']}, simulated", file.stem, parts)


MAKERS: dict[str, Callable[[Path, dict[str, Any]], Section]] = {"policies": section}


def queued(outcomes: Sequence[Outcome]) -> bool:
    """Whether requests had to wait, so that somebody had to choose among them."""
    return max(outcome["queued"] for outcome in outcomes) >= NO_QUEUE


def name_of(outcome: Outcome) -> str:
    """What a picture calls an outcome: what is not as it is by default."""
    parts = outcome["policy"], outcome["predictor"], outcome["admission"]
    return ", ".join(part for part in parts if part not in ("none", "optimistic"))


def draw(outcomes: Sequence[Outcome], title: str, name: str, colour: str, stem: str) -> Picture:
    """A bar for each outcome, of the figure of that name."""
    drawn = [Bar(name_of(o), f"{o[name]:.2f} s", [(o[name], colour)]) for o in outcomes]
    alt = f"{title}. " + "; ".join(f"{bar.name}: {bar.figure}" for bar in drawn) + "."
    file = f"{stem}-{name.replace('_', '-')}.svg"
    return Picture(file, [bars.panel(drawn)], f"{title}, seconds of the simulated clock.", alt, rank=2)


def _table(outcomes: Sequence[Outcome]) -> str:
    times = ("makespan, s", "mean E2EL, s", "E2EL p99, s", "mean TTFT, s")
    header = ("policy", "lengths", "admission", *times, "limits kept", "fairness")
    rows = [
        (
            o["policy"],
            o["predictor"],
            o["admission"],
            *(o[name] for name in ("makespan", "mean_e2el", "p99_e2el", "mean_ttft")),
            f"{o['met']:.0%}",
            o["fairness"],
            o["num_preempted"],
            o["recomputed"],
            "" if o["regret"] is None else f"{o['regret']:+.0%}",
        )
        for o in outcomes
    ]
    return page.table((*header, "preempted", "recomputed", "regret"), rows)
