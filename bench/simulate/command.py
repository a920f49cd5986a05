"""`jbatch simulate`: a workload through the engine's own scheduler, on costs instead of a device."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.claims import claimed
from bench.flags import Goodput, Json, Source, policies_flag, several
from bench.ladder import tables
from bench.ladder.arms import Arm
from bench.ladder.ladder import climb
from bench.ladder.subject import DEMO_SCALE
from bench.measure.models import DEMO
from bench.options import (
    ENGINE_OPTIONS,
    SIMULATED_ENGINE,
    SIMULATED_RUN,
    WORKLOAD,
    Setting,
    parse_goodput,
)
from bench.results import ArmResult, Results, describe, write
from bench.simulate.cluster import Cluster, run_cluster
from bench.simulate.hardware import HARDWARE, derive, num_pages
from bench.simulate.subject import Simulated, SimulatedSubject
from bench.workloads.lengths import SCENARIOS
from bench.workloads.workload import Workload, check_options, make_workload
from jbatch import shown
from jbatch.cli.help import GroupedCommand
from jbatch.cli.options import with_options
from jbatch.cli.tables import Page, Table, number
from jbatch.config import EngineConfig, check_range
from jbatch.errors import ConfigError
from jbatch.host.policies import POLICIES
from jbatch.host.router import ROUTERS, router_of
from jbatch.model_dir.shapes import RUNNABLE, model_config
from jbatch.sim.cost import CostError, CostTable, read_costs

MEMORY_SHARE = 0.9
MAX_REPLICAS = 1024

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclasses.dataclass(frozen=True)
class Simulation:
    """On how many engines, under which policies and routers, and where the results go.

    Raises:
      ConfigError: naming the field, its value and the limit.
    """

    policy: Annotated[list[str] | None, policies_flag("fcfs")] = None
    goodput: Goodput = None
    replicas: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Engines behind a router; --policy is then that of each.",
            rich_help_panel="Replicas",
        ),
    ] = 1
    replica_speed: Annotated[
        list[float] | None,
        typer.Option(
            metavar="X",
            help="Of the replicas in turn. May be repeated. [default: 1 for each]",
            rich_help_panel="Replicas",
        ),
    ] = None
    router: Annotated[list[str] | None, several(ROUTERS, "May be repeated. [default: all]", "Replicas")] = (
        None
    )
    output_json: Json = None

    def __post_init__(self) -> None:
        for name in self.policy or ():
            if name not in POLICIES:
                raise ConfigError("policy", name, f"must be one of {', '.join(POLICIES)}")
        check_range("replicas", self.replicas, 1, MAX_REPLICAS)
        for field in ("replica_speed", "router"):
            if self.replicas == 1 and (given := getattr(self, field)):
                raise ConfigError(field, given, "is for several engines: give --replicas, too")
        for speed in self.replica_speed or ():
            if not 0 < speed < 1e6:
                raise ConfigError("replica_speed", speed, "must be a number above 0")

    @property
    def arms(self) -> list[Arm]:
        """Continuous batching under each policy, once."""
        return [
            Arm(name, "continuous", f"continuous batching, {name}", name)  # type: ignore[arg-type]
            for name in dict.fromkeys(self.policy or ("fcfs",))
        ]

    @property
    def routers(self) -> tuple[str, ...]:
        """Each once."""
        return tuple(dict.fromkeys(self.router or ROUTERS))

    @property
    def speeds(self) -> list[float]:
        """One for each replica: those given, in turn."""
        given = self.replica_speed or [1.0]
        return [given[number % len(given)] for number in range(self.replicas)]


@app.command(
    cls=GroupedCommand, short_help="A workload on costs instead of a device, with the engine's own scheduler."
)
@with_options(Source, Simulation, SIMULATED_ENGINE, WORKLOAD, SIMULATED_RUN)
def simulate(
    source: Source,
    simulation: Simulation,
    engine_options: dict[str, Any],
    workload_options: dict[str, Any],
    setting_options: dict[str, Any],
) -> None:
    """Run a workload through the engine and its scheduler as they are, on a clock of their own. Nothing is
    computed: each step takes what steps of its size and load cost.
    """
    setting = Setting(**setting_options, repeats=1, goodput=parse_goodput(simulation.goodput or ()))
    if simulation.replicas > 1:
        _check_cluster(simulation, setting)
    simulated = simulated_by(source.costs, source.hardware, source.model, engine_options)
    workload = workload_for(source.dataset_name, setting, simulated, workload_options)
    _check_room(simulated, workload)
    if simulation.replicas > 1:
        return _print_cluster(Page(), simulated, workload, simulation, setting.seed)
    path = simulation.output_json
    with claimed(path):
        begin = time.monotonic()
        done = climb(SimulatedSubject(simulated, seed=setting.seed), simulation.arms, workload, setting)
        wall_s = time.monotonic() - begin
        about = dict(simulated.about) | {"setting": dataclasses.asdict(setting), "wall_s": wall_s}
        if path is not None:
            write(path, Results("simulated", about, describe(workload), done))
    _print(Page(), simulated, workload, done, wall_s)


def _check_cluster(simulation: Simulation, setting: Setting) -> None:
    """Raise ConfigError for what only one engine has."""
    if len(simulation.arms) > 1:
        names = [arm.name for arm in simulation.arms]
        raise ConfigError("policy", names, "several engines have one policy: name one")
    for field, value in (("goodput", setting.goodput), ("max_concurrency", setting.max_concurrency)):
        if value:
            raise ConfigError(field, value, "is for one engine: leave it or --replicas out")
    if simulation.output_json is not None:
        raise ConfigError(
            "output_json", str(simulation.output_json), "is for one engine: leave it or --replicas out"
        )


def _check_room(sim: Simulated, workload: Workload) -> None:
    """Raise ConfigError where the page pool does not hold the longest request, which would be refused."""
    page_size, longest = sim.config.page_size, workload.longest
    if (sim.num_pages - 1) * page_size < longest:
        reason = f"must be at least {1 - (-longest // page_size)}: the longest request has {longest} tokens"
        raise ConfigError("num_pages", sim.num_pages, reason)


def simulated_by(
    costs: Path | None, hardware: str | None, model: str, options: Mapping[str, Any]
) -> Simulated:
    """What is simulated. Raises ConfigError where it is not said, or said twice, and CostError for a file
    that holds none."""
    if (costs is None) == (hardware is None):
        raise ConfigError("costs", costs and str(costs), "give either --costs FILE or --hardware NAME")
    return measured_by(read_costs(costs), options) if costs else _derived(str(hardware), model, options)


def measured_by(table: CostTable, options: Mapping[str, Any]) -> Simulated:
    """The engine that costs were measured with, but for `options`. Its prefix cache is on unless they say
    otherwise: it is off where costs are measured, or a repeated prompt would cost nothing.

    Raises CostError where the costs do not say what they were measured with.
    """
    about = table.about
    try:
        said = (*ENGINE_OPTIONS, "decode_buckets", "token_buckets")
        measured = {name: about["engine"][name] for name in about["engine"] if name in said}
        measured.pop("enable_prefix_caching", None)
        known = {name: about[name] for name in ("max_num_seqs", "num_pages", "max_model_len")}
        vocab_size = about["model_config"]["vocab_size"]
    except KeyError as error:
        raise CostError(f"the costs do not say what they were measured with: {error} is missing") from None
    except TypeError:
        raise CostError("the costs do not say what they were measured with: no objects") from None
    for name, value in (known | {"vocab_size": vocab_size}).items():
        if type(value) is not int or value < 1:
            raise CostError(f"the costs were measured with {name}={value!r:.60}: must be an integer above 0")
    sizes = measured | known | dict(options)
    for name in ("kv_cache_memory_bytes", "tuned"):
        sizes.pop(name, None)
    config = EngineConfig(**sizes)
    return Simulated(config, sizes["max_model_len"], sizes["num_pages"], vocab_size, table, about)


def _derived(hardware: str, model: str, options: Mapping[str, Any]) -> Simulated:
    if hardware not in HARDWARE:
        raise ConfigError("hardware", hardware, f"must be one of {', '.join(HARDWARE)}")
    if model not in RUNNABLE:
        raise ConfigError("model", model, f"must be one of {', '.join(RUNNABLE)}")
    shape, described = RUNNABLE[model], HARDWARE[hardware]
    max_model_len = options.get("max_model_len") or shape.context_len
    of_model = model_config(model, shape.num_layers, max_model_len)
    config = EngineConfig(**options)
    pages = config.num_pages or num_pages(described, of_model, config.page_size, MEMORY_SHARE)
    if pages < 2:
        memory = f"{MEMORY_SHARE:.0%} of the {described.memory_bytes / 1e9:.0f} GB of one {described.name}"
        raise ConfigError(
            "model", model, f"does not fit into {memory}; --num-pages simulates it all the same"
        )
    about = {
        "model": model,
        "device": f"{described.name}, derived from its data sheet and not measured",
        "max_num_seqs": config.max_num_seqs,
        "hardware": described._asdict(),
        "model_config": dataclasses.asdict(of_model),
    }
    return Simulated(config, max_model_len, pages, of_model.vocab_size, derive(described, of_model), about)


def workload_for(name: str, setting: Setting, sim: Simulated, options: Mapping[str, Any]) -> Workload:
    """A workload by name, for an engine's context; for the demo model, scenarios at a quarter of their
    lengths. Raises what `make_workload` raises."""
    check_options((name,), options)
    defaults: dict[str, Any] = {}
    if sim.about.get("model") == DEMO and name in SCENARIOS:
        defaults["length_scale"] = DEMO_SCALE
    return make_workload(
        name,
        num_prompts=setting.num_prompts,
        seed=setting.seed,
        vocab_size=sim.vocab_size,
        max_model_len=sim.max_model_len,
        **defaults | dict(options),
    )


def _print_cluster(out: Page, sim: Simulated, workload: Workload, simulation: Simulation, seed: int) -> None:
    """The table of routers, and what one engine alone does."""
    (arm,), speeds = simulation.arms, simulation.speeds
    made = {
        name: run_cluster(sim, arm, workload, router_of(name), speeds, seed) for name in simulation.routers
    }
    alone = run_cluster(sim, arm, workload, router_of("round-robin"), [1.0], seed)
    out.print(tables.describe_workload(describe(workload)))
    each_is = f"each {sim.about.get('model')} on {sim.about.get('device')}"
    out.print(
        f"simulated: {len(speeds)} engines with policy {arm.name}, {each_is}; times are those of the "
        "simulated clock\n"
    )
    out.show(routers_table(made, alone.output_throughput * sum(speeds)))
    out.print(f"One engine with all of it does {alone.output_throughput:.0f} tokens/s.")


def routers_table(made: Mapping[str, Cluster], ideal: float) -> Table:
    """The routers by what their engines did; `ideal` is the tokens/s that these could do."""
    times = "mean TTFT, s", "mean E2EL, s", "E2EL p99, s"
    rows = []
    for name, each in made.items():
        seconds = map(number, (each.mean_ttft, each.mean_e2el, each.p99_e2el))
        rates = f"{each.output_throughput:.0f}", f"{each.output_throughput / ideal:.0%}"
        shares = f"{each.imbalance:.2f}", f"{each.hit_rate:.0%}"
        rows.append((name, *rates, *seconds, *shares))
    return Table(("arm", "tokens/s", "of ideal", *times, "imbalance", "cached"), rows)


def sizes_of(sim: Simulated) -> str:
    """How much a simulated engine holds, in words."""
    seqs, pages = shown.count(sim.config.max_num_seqs, "sequence"), shown.count(sim.num_pages - 1, "page")
    return f"{seqs} at once, {pages}"


def _print(
    out: Page, sim: Simulated, workload: Workload, done: Mapping[str, ArmResult], wall_s: float
) -> None:
    out.print(tables.describe_workload(describe(workload)))
    measured = isinstance(sim.costs, CostTable)
    source = "costs measured on " if measured else ""
    out.print(f"simulated: {sim.about.get('model')} on {source}{sim.about.get('device')}")
    out.print(f"{sizes_of(sim)}\n")
    tables.print_rates(out, done)
    tables.print_not_run(out, done)
    out.print(f"simulated in {wall_s:.1f} s")
