"""`jbatch bench`: flags. Names follow `vllm bench`. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.flags import (
    DATASETS,
    Costs,
    Dataset,
    Details,
    Goodput,
    HardwareName,
    Json,
    Model,
    SimulatedModel,
    admissions_flag,
    policies_flag,
)
from bench.options import (
    ARM_NAMES,
    ENGINE,
    LADDER_ENGINE,
    LATENCY,
    POLICIES_ENGINE,
    SETTING,
    SIMULATED_RUN,
    THROUGHPUT,
    WORKLOAD,
    LatencySetting,
    Setting,
    parse_goodput,
)
from jbatch.cli.help import GroupedCommand, choices
from jbatch.cli.options import with_options
from jbatch.distribution import install_hint
from jbatch.errors import JBatchError

app = typer.Typer(
    help="Measure and compare: batching, policies, engines; report.",
    add_completion=False,
    rich_markup_mode=None,
)


@app.command(cls=GroupedCommand, short_help="The ladder: unbatched, static, padded, sorted, continuous.")
@with_options(LADDER_ENGINE, WORKLOAD, SETTING)
def batching(
    engine_options: dict[str, Any],
    workload_options: dict[str, Any],
    setting_options: dict[str, Any],
    model: Model = "demo",
    dataset_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"May be repeated: {DATASETS} [default: mixed_length]",
            rich_help_panel="Workload",
        ),
    ] = None,
    arms: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"May be repeated: {', '.join(ARM_NAMES)}. [default: all]",
            rich_help_panel="Arms",
        ),
    ] = None,
    goodput: Goodput = None,
    output_json: Json = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="One file per dataset; must not exist.", rich_help_panel="Output"),
    ] = None,
    details: Details = False,
) -> None:
    """Run the same requests through one engine in each way to batch, an arm each, and compare.

    Lengths are forced, so that all arms do equal work on the same weights, kernels and programs.
    """
    setting = Setting(**setting_options, goodput=parse_goodput(goodput or ()))
    from bench.ladder.batching import Experiment, run_batching

    names = tuple(dict.fromkeys(dataset_name or ("mixed_length",)))
    experiment = Experiment(model, names, tuple(arms or ()), output_json, output_dir, details)
    run_batching(experiment, setting, engine_options, workload_options)


@app.command(cls=GroupedCommand, short_help="Requests and tokens per second of continuous batching.")
@with_options(ENGINE, WORKLOAD, THROUGHPUT)
def throughput(
    engine_options: dict[str, Any],
    workload_options: dict[str, Any],
    setting_options: dict[str, Any],
    model: Model = "demo",
    dataset_name: Dataset = "random",
    output_json: Json = None,
) -> None:
    """Measure offline throughput, as `vllm bench throughput` does."""
    setting = Setting(**{"num_prompts": 1000, "repeats": 1, "no_floor": True} | setting_options)
    from bench.ladder.batching import Experiment
    from bench.ladder.throughput import run_throughput

    experiment = Experiment(model, (dataset_name,), output_json=output_json)
    run_throughput(experiment, setting, engine_options, workload_options)


@app.command(cls=GroupedCommand, short_help="The time of one batch.")
@with_options(ENGINE, LATENCY)
def latency(
    engine_options: dict[str, Any],
    latency_options: dict[str, Any],
    model: Model = "demo",
    output_json: Json = None,
) -> None:
    """Measure the time of one batch, again and again, as `vllm bench latency` does."""
    setting = LatencySetting(**latency_options)
    from bench.ladder.batching import Experiment
    from bench.ladder.throughput import run_latency

    run_latency(Experiment(model, ("random",), output_json=output_json), setting, engine_options)


@app.command(cls=GroupedCommand, short_help="What a prefix cache saves: off, cold, warm.")
@with_options(ENGINE, WORKLOAD, SETTING)
def prefix(
    engine_options: dict[str, Any],
    workload_options: dict[str, Any],
    setting_options: dict[str, Any],
    model: Model = "demo",
    dataset_name: Dataset = "few-shot",
    output_json: Json = None,
) -> None:
    """Run the same requests without a prefix cache, with an empty one, and once more."""
    setting = Setting(**{"num_prompts": 128} | setting_options)
    from bench.ladder.batching import Experiment
    from bench.ladder.prefix import run_prefix

    run_prefix(
        Experiment(model, (dataset_name,), output_json=output_json), setting, engine_options, workload_options
    )


@app.command(cls=GroupedCommand, short_help="What each step costs on this machine, for jbatch simulate.")
@with_options(LADDER_ENGINE)
def calibrate(
    engine_options: dict[str, Any],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="Must not exist.", rich_help_panel="Output"),
    ],
    model: Model = "demo",
    repeats: Annotated[
        int, typer.Option(min=1, metavar="N", help="Runs of each size.", rich_help_panel="Measurement")
    ] = 2,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Of lengths and token ids.", rich_help_panel="Measurement")
    ] = 0,
) -> None:
    """Run an engine on workloads of many sizes, and fit what its steps cost.

    Leave the machine alone meanwhile.
    """
    from bench.simulate.calibrate import run_calibrate

    run_calibrate(model, engine_options, repeats, seed, output)


@app.command(cls=GroupedCommand, short_help="Who runs first: policies and predictors of lengths, simulated.")
@with_options(POLICIES_ENGINE, WORKLOAD, SIMULATED_RUN)
def policies(
    engine_options: dict[str, Any],
    workload_options: dict[str, Any],
    setting_options: dict[str, Any],
    costs: Costs = None,
    hardware: HardwareName = None,
    model: SimulatedModel = "llama3-8b",
    dataset_name: Dataset = "mixed_length",
    policy: Annotated[list[str] | None, policies_flag("all")] = None,
    predictor: Annotated[
        list[str] | None,
        typer.Option(
            metavar=choices(("none", "oracle", "noisy", "running-mean", "prompt-length"), "FILE"),
            help="Of output lengths; a file is a trained one. May be repeated. "
            "[default: none, oracle, noisy, running-mean]",
            rich_help_panel="Scheduling",
        ),
    ] = None,
    admission: Annotated[list[str] | None, admissions_flag("optimistic")] = None,
    output_json: Json = None,
    output_png: Annotated[
        Path | None,
        typer.Option(
            "--output-png", metavar="FILE", help="Draw it there; must not exist.", rich_help_panel="Output"
        ),
    ] = None,
    details: Details = False,
) -> None:
    """Simulate one workload under each policy, where requests have to queue, and compare."""
    setting = Setting(**setting_options, repeats=1)
    from bench.simulate.policies_command import Lab, run_policies
    from jbatch.host.policies import POLICIES

    names = tuple(dict.fromkeys(policy or POLICIES))
    predictors = tuple(dict.fromkeys(predictor or ("none", "oracle", "noisy", "running-mean")))
    admissions: Any = tuple(dict.fromkeys(admission or ("optimistic",)))
    lab = Lab(
        *(costs, hardware, model, dataset_name, names, predictors, admissions, output_json, output_png),
        details=details,
    )
    run_policies(lab, setting, engine_options, workload_options)


PASSED_ON: Any = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@app.command(context_settings=PASSED_ON, short_help="jbatch against PyTorch, on the same device.")
def compare(context: typer.Context) -> None:
    """Flags are those of bench.compare.command: see `jbatch bench compare --help`."""
    _pass_on("bench.compare.command", "run", context.args)


@app.command(context_settings=PASSED_ON, short_help="Pictures and one page from results.")
def report(context: typer.Context) -> None:
    """Flags are those of bench.report.command: see `jbatch bench report --help`."""
    _pass_on("bench.report.command", "main", context.args)


def _pass_on(module: str, function: str, args: list[str]) -> None:
    """Call `function(args)` of a module that has its own flags; what it returns is the exit code, if any."""
    try:
        command = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise JBatchError(f"{module}: {error.name} is not installed: {install_hint('bench')}") from None
    code = getattr(command, function)(args)
    if code:
        raise typer.Exit(code)
