"""`jbatch bench policies`: the policy lab, as a table and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from bench.claims import claimed
from bench.flags import Lab, Source
from bench.ladder.tables import describe_workload
from bench.options import Setting
from bench.report.policies import NO_QUEUE_TEXT, name_of, queued
from bench.results import describe
from bench.simulate.command import simulated_by, sizes_of, workload_for
from bench.simulate.policies import Outcome, predictor_of, run_lab
from bench.simulate.subject import Simulated
from bench.workloads.workload import Workload
from jbatch.cli.tables import Page, Table, number
from jbatch.config import AdmissionName, check_choice
from jbatch.distribution import install_hint
from jbatch.errors import ConfigError
from jbatch.host.policies import POLICIES

DEFAULT_SEQS = 16
PREDICTORS = ("none", "oracle", "noisy", "running-mean")  # by default
POOL_SHARE = 0.5  # of the pages that as many of the longest requests would fill


def run_policies(
    source: Source,
    lab: Lab,
    setting: Setting,
    engine_options: dict[str, Any],
    workload_options: dict[str, Any],
) -> list[Outcome]:
    """Simulate, print and write. Raises what `jbatch simulate` raises."""
    options = {"max_num_seqs": DEFAULT_SEQS} | engine_options
    sim = simulated_by(source.costs, source.hardware, source.model, options)
    workload = workload_for(source.dataset_name, setting, sim, workload_options)
    if "num_pages" not in engine_options:
        sim = _constrained(sim, workload)
    policies = tuple(dict.fromkeys(lab.policy or POLICIES))
    predictors = tuple(dict.fromkeys(lab.predictor or PREDICTORS))
    admissions: Any = tuple(dict.fromkeys(lab.admission or ("optimistic",)))
    for admission in admissions:
        check_choice("admission", admission, get_args(AdmissionName))
    for name in predictors:
        predictor_of(name, workload, setting.seed)  # where no policy asks for it, too
    if lab.output_png is not None and find_spec("matplotlib") is None:
        raise ConfigError("output_png", str(lab.output_png), f"needs matplotlib: {install_hint('lab')}")
    budget = _budget(sim, workload)
    with claimed(lab.output_json), claimed(lab.output_png):
        outcomes = run_lab(sim, workload, policies, predictors, admissions, budget, setting.seed)
        print_lab(Page(), sim, workload, outcomes, lab.details)
        if lab.output_json is not None:
            _write(lab.output_json, sim, workload, outcomes)
        if lab.output_png is not None:
            draw(outcomes, lab.output_png)
    return outcomes


def _write(path: Path, sim: Simulated, workload: Workload, outcomes: Sequence[Outcome]) -> None:
    """For `jbatch bench report`."""
    content = {
        "schema": 1,
        "kind": "policies",
        "workload": describe(workload),
        "outcomes": [outcome._asdict() for outcome in outcomes],
        "simulated": {
            "model": sim.about.get("model"),
            "device": sim.about.get("device"),
            "max_num_seqs": sim.config.max_num_seqs,
            "num_pages": sim.num_pages,
        },
    }
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def _longest_pair(workload: Workload) -> tuple[int, int]:
    """Tokens of the longest prompt and of the longest answer, be they of one request or of two."""
    prompts = max(len(item.prompt_token_ids) for item in workload.items)
    return prompts, max(item.output_len for item in workload.items)


def _budget(sim: Simulated, workload: Workload) -> int:
    """`max_tokens` of every request, or it would tell lengths. Raises ConfigError where one is longer."""
    prompt_len, output_len = _longest_pair(workload)
    need, page_size = prompt_len + output_len, sim.config.page_size
    why = f": the longest prompt has {prompt_len} tokens, and every request may have the {output_len} of the "
    why += "longest answer"
    if sim.max_model_len < need:
        raise ConfigError("max_model_len", sim.max_model_len, f"must be at least {need}{why}")
    if (sim.num_pages - 1) * page_size < need:
        raise ConfigError("num_pages", sim.num_pages, f"must be at least {1 - (-need // page_size)}{why}")
    return min(sim.max_model_len, (sim.num_pages - 1) * page_size) - prompt_len


def _constrained(sim: Simulated, workload: Workload) -> Simulated:
    """With so few pages that some sequences are preempted; the longest budget fits."""
    page_size = sim.config.page_size
    longest = -(-workload.longest // page_size)
    least = -(-sum(_longest_pair(workload)) // page_size)
    pages = 1 + max(least, round(POOL_SHARE * longest * sim.config.max_num_seqs))
    return sim._replace(num_pages=min(sim.num_pages, pages))


def print_lab(
    out: Page, sim: Simulated, workload: Workload, outcomes: Sequence[Outcome], details: bool = False
) -> None:
    """The table, of every figure with `details`; what is the same in all rows is said once, above it."""
    out.print(describe_workload(describe(workload)))
    out.print(
        f"simulated: {sim.about.get('model')} on {sim.about.get('device')}; "
        f"{sizes_of(sim)}; times are those of the simulated clock\n"
    )
    if not queued([outcome._asdict() for outcome in outcomes]):
        out.print(f"{NO_QUEUE_TEXT}\n")
    if same := [name for name in NAMES if name not in _varied(outcomes)]:
        out.print(", ".join(f"{NAMES[name]}: {getattr(outcomes[0], name)}" for name in same) + "\n")
    out.show(outcomes_table(outcomes, details))
    out.print("lengths: who predicts them for the policy; none: it knows max_tokens alone")
    if not details:
        out.print("With --details: TTFT, fairness, preemptions and recomputed tokens, too.")


NAMES = {"policy": "policy", "predictor": "lengths", "admission": "admission"}


def _varied(outcomes: Sequence[Outcome]) -> list[str]:
    """What makes an arm, as far as arms differ in it."""
    return [name for name in NAMES if len({getattr(o, name) for o in outcomes}) > 1] or ["policy"]


def outcomes_table(outcomes: Sequence[Outcome], details: bool = False) -> Table:
    """The arms by how long requests took; with `details` also by what was paid for it."""
    varied = _varied(outcomes)
    rows = []
    for o in outcomes:
        row = [*(getattr(o, name) for name in varied)]
        row += map(number, (o.makespan, o.mean_e2el, o.p99_e2el))
        row += [f"{o.met:.0%}", "" if o.regret is None else f"{o.regret:+.0%}"]
        if details:
            row += [number(o.mean_ttft), f"{o.fairness:.2f}", f"{o.num_preempted}", f"{o.recomputed}"]
        rows.append(row)
    headings = [*(NAMES[name] for name in varied), "makespan, s", "mean E2EL, s", "E2EL p99, s"]
    headings += ["limits kept", "regret"]
    if details:
        headings += ["mean TTFT, s", "fairness", "preempted", "recomputed"]
    return Table(headings, rows, num_names=len(varied))


PICTURE_STYLE: Any = {
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Mean and 99th percentile of the latency, and the makespan, as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    from bench.report.colours import BLUE, GREY, ORANGE

    names = [name_of(outcome._asdict()) for outcome in outcomes]
    columns = (
        ("mean latency", "mean_e2el", BLUE),
        ("p99 latency", "p99_e2el", ORANGE),
        ("makespan", "makespan", GREY),
    )
    with matplotlib.rc_context(PICTURE_STYLE):
        figure = Figure(figsize=(9, 0.6 + 0.26 * len(names)), layout="constrained")
        axes = figure.subplots(1, len(columns), sharey=True)
        for axis, (title, field, colour) in zip(axes, columns, strict=True):
            axis.barh(names, [getattr(o, field) for o in outcomes], color=colour)
            axis.set_title(title)
            axis.set_xlabel("seconds, simulated")
            axis.grid(axis="y", visible=False)
        axes[0].invert_yaxis()
        figure.savefig(path, dpi=150, format="png")  # whatever the file is called
