"""`jbatch tune`: options for an engine, chosen by simulation for a workload and an aim."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from bench.claims import claimed
from bench.flags import (
    Dataset,
    Goodput,
    HardwareName,
    SimulatedModel,
    admissions_flag,
    policies_flag,
)
from bench.ladder.tables import describe_workload
from bench.options import SIMULATED_ENGINE, SIMULATED_RUN, WORKLOAD, Setting, parse_goodput
from bench.results import describe
from bench.simulate.command import simulated_by, workload_for
from bench.simulate.subject import Simulated
from bench.tune.aim import Aim, AimName
from bench.tune.candidate import Field
from bench.tune.report import print_tuned
from bench.tune.tune import Tuned, tune
from bench.workloads.workload import Workload
from jbatch.cli.help import GroupedCommand, choices
from jbatch.cli.options import with_options
from jbatch.cli.tables import Page
from jbatch.config import PAGE_SIZES, AdmissionName, PolicyName, check_choice
from jbatch.distribution import version
from jbatch.errors import ConfigError
from jbatch.host.lengths.find import find_predictor
from jbatch.model_dir.tuned import SIZES
from jbatch.model_dir.tuned import Tuned as TunedFile
from jbatch.sim.cost import CostError

# What an engine is tuned in cannot be said, too.
SAID = SIMULATED_ENGINE.only("max_model_len", "num_pages")
RUN = SIMULATED_RUN.only("num_prompts", "seed")

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclasses.dataclass(frozen=True)
class Sources:
    """What is simulated: costs of steps, of one engine or of several, and a workload by name."""

    costs: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Costs that `jbatch bench calibrate` measured. May be repeated: for each page size and each "
            "max_num_seqs to choose from.",
            rich_help_panel="Costs",
        ),
    ] = None
    hardware: HardwareName = None
    model: SimulatedModel = "llama3-8b"
    dataset_name: Dataset = "mixed_length"


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """What is searched, for which aim, and for how long.

    Raises:
      ConfigError: naming the field, its value and the limit.
    """

    aim: Annotated[
        str,
        typer.Option(
            metavar=choices(get_args(AimName)), help="What is to be best.", rich_help_panel="Search"
        ),
    ] = "throughput"
    throughput_floor: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="p99-ttft: share of the default's throughput to keep.",
            rich_help_panel="Search",
        ),
    ] = 0.95
    goodput: Goodput = None
    policy: Annotated[list[str] | None, policies_flag("fcfs")] = None
    admission: Annotated[list[str] | None, admissions_flag("all")] = None
    predictor: Annotated[
        str,
        typer.Option(
            metavar=choices(("running-mean", "prompt-length"), "FILE"),
            help="Of lengths, for policies and admissions that go by them.",
            rich_help_panel="Scheduling",
        ),
    ] = "running-mean"
    time_budget: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="No other arm is begun after that.", rich_help_panel="Search"),
    ] = 300.0

    def __post_init__(self) -> None:
        limits = parse_goodput(self.goodput or ())
        check_choice("aim", self.aim, get_args(AimName))
        if not 0 < self.throughput_floor <= 1:
            raise ConfigError("throughput_floor", self.throughput_floor, "must be above 0, at most 1")
        if (self.aim == "goodput") != bool(limits):
            raise ConfigError("goodput", limits, "the aim goodput needs limits, and only that has any")
        if not self.time_budget > 0:
            raise ConfigError("time_budget", self.time_budget, "must be a number of seconds above 0")
        for name in self.policy or ():
            check_choice("policy", name, get_args(PolicyName))
        for name in self.admission or ():
            check_choice("admission", name, get_args(AdmissionName))

    @property
    def parsed_aim(self) -> Aim:
        """The aim, with its limits."""
        limits = parse_goodput(self.goodput or ())
        return Aim(self.aim, self.throughput_floor, limits)  # type: ignore[arg-type]

    def field(self, engines: Sequence[Simulated]) -> Field:
        """All that may be chosen, each once."""
        policies: Any = tuple(dict.fromkeys(self.policy or ("fcfs",)))
        admissions: Any = tuple(dict.fromkeys(self.admission or get_args(AdmissionName)))
        return Field(engines, policies, admissions)


@app.command(
    name="tune",
    cls=GroupedCommand,
    short_help="Options of an engine for a workload and an aim, found by simulation.",
)
@with_options(Sources, SearchOptions, SAID, WORKLOAD, RUN)
def tune_command(
    sources: Sources,
    search: SearchOptions,
    engine_options: dict[str, Any],
    workload_options: dict[str, Any],
    setting_options: dict[str, Any],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="Must not exist.", rich_help_panel="Output"),
    ],
) -> None:
    """Search the options that a workload runs best with, in simulations of the engine and its scheduler, and
    write them to a file for LLM(tuned=FILE) and --tuned FILE.

    max_num_seqs, max_num_batched_tokens, the page size, policy and admission are searched one after the
    other; then buckets that are not worth their programs are left out. The page pool keeps its tokens.
    """
    setting = Setting(**setting_options, repeats=1)
    field, aim = search.field(_engines(sources, engine_options)), search.parsed_aim
    find_predictor(search.predictor)
    first = field.engines[0]

    def draw(seed: int) -> Workload:
        drawn = Setting(num_prompts=setting.num_prompts, seed=seed)
        return workload_for(sources.dataset_name, drawn, first, workload_options)

    with claimed(output):
        begin = time.monotonic()
        tuned = tune(field, draw, setting.seed, aim, search.predictor, search.time_budget)
        workload = describe(draw(setting.seed))
        _file(tuned, first, aim, workload).write(output)
    out = Page()
    out.print(describe_workload(workload))
    print_tuned(out, first, tuned, aim, time.monotonic() - begin)
    out.print(f"wrote {output}: LLM(..., tuned={str(output)!r}), or --tuned {output}")


def _engines(sources: Sources, options: dict[str, Any]) -> list[Simulated]:
    """What options are chosen for: derived costs hold for all of them, measured ones for the engine that they
    were measured with."""
    hardware, model = sources.hardware, sources.model
    found: list[Simulated] = []
    if not sources.costs:
        found += (simulated_by(None, hardware, model, options | {"page_size": size}) for size in PAGE_SIZES)
        return sorted(found, key=lambda sim: sim.config.page_size != 64)  # the default's pool is kept
    for path in sources.costs:
        sim = simulated_by(path, hardware, model, options)
        if found and _sizes(sim) != _sizes(found[0]):
            raise ConfigError("costs", str(path), "was measured with another model than the first")
        own = sim.config.max_num_seqs, sim.config.page_size
        if own in [(other.config.max_num_seqs, other.config.page_size) for other in found]:
            reason = f"is a second one of max_num_seqs={own[0]} and page_size={own[1]}: give one for each"
            raise ConfigError("costs", str(path), reason)
        found.append(sim)
    return found


def _sizes(sim: Simulated) -> dict[str, int]:
    """The model's, as a file keeps them. Raises CostError where the costs do not say them."""
    given = sim.about["model_config"]
    for name in SIZES:
        if type(given.get(name)) is not int:
            reason = f"{name}={given.get(name)!r:.60}: must be an integer"
            raise CostError(f"the costs do not say of which model they are: {reason}")
    return {name: given[name] for name in SIZES}


def _file(tuned: Tuned, sim: Simulated, aim: Aim, workload: dict[str, Any]) -> TunedFile:
    """What is written."""
    hardware = sim.about.get("hardware")
    about = {
        "model": sim.about.get("model"),
        "costs": sim.about.get("device"),
        "workload": workload,
        "aim": aim._asdict() | {"limits": dict(aim.limits)},
        "predicted": {"default": tuned.default_held._asdict(), "tuned": tuned.best_held._asdict()},
        "pool_tokens": (sim.num_pages - 1) * sim.config.page_size,
    }
    device = hardware["name"] if hardware else str(sim.about.get("device"))
    return TunedFile(tuned.options, _sizes(sim), device, version(), about)
