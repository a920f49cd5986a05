"""`jbatch bench`: flags. Names follow `vllm bench`. Nothing heavy is imported until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.flags import Comparison, Dataset, Experiment, Json, Lab, Model, Source
from bench.options import (
    CLOSED_WORKLOAD,
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
from jbatch.cli.help import GroupedCommand
from jbatch.cli.options import with_options

app = typer.Typer(
    help="Measure and compare: batching, policies, engines; report.",
    add_completion=False,
    rich_markup_mode=None,
)


@app.command(cls=GroupedCommand, short_help="The ladder: unbatched, static, padded, sorted, continuous.")
@with_options(Experiment, LADDER_ENGINE, WORKLOAD, SETTING)
def batching(
    experiment: Experiment,
    engine_options: dict[str, Any],
    workload_options: dict[str, Any],
    setting_options: dict[str, Any],
) -> None:
    """Run the same requests through one engine in each way to batch, an arm each, and compare.

    Lengths are forced, so that all arms do equal work on the same weights, kernels and programs.
    """
    setting = Setting(**setting_options, goodput=parse_goodput(experiment.goodput or ()))
    from bench.ladder.batching import run_batching

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
    from bench.ladder.throughput import run_throughput

    experiment = Experiment(model, [dataset_name], output_json=output_json)
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
    from bench.ladder.throughput import run_latency

    run_latency(Experiment(model, ["random"], output_json=output_json), setting, engine_options)


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
    from bench.ladder.prefix import run_prefix

    run_prefix(
        Experiment(model, [dataset_name], output_json=output_json), setting, engine_options, workload_options
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
@with_options(Source, Lab, POLICIES_ENGINE, WORKLOAD, SIMULATED_RUN)
def policies(
    source: Source,
    lab: Lab,
    engine_options: dict[str, Any],
    workload_options: dict[str, Any],
    setting_options: dict[str, Any],
) -> None:
    """Simulate one workload under each policy, where requests have to queue, and compare."""
    setting = Setting(**setting_options, repeats=1)
    from bench.simulate.policies_command import run_policies

    run_policies(source, lab, setting, engine_options, workload_options)


@app.command(cls=GroupedCommand, short_help="jbatch against PyTorch, on the same device.")
@with_options(Comparison, LADDER_ENGINE, CLOSED_WORKLOAD, SETTING.only("num_prompts", "seed", "repeats"))
def compare(
    comparison: Comparison,
    engine_options: dict[str, Any],
    workload_options: dict[str, Any],
    setting_options: dict[str, Any],
) -> None:
    """Run the same requests through jbatch and through PyTorch's engines, on one device and the same weights.

    Greedy tokens are compared before any time is shown; an arm that cannot run, or that gives other tokens,
    is a line that says why.
    """
    setting = Setting(**setting_options)
    from bench.compare import command
    from bench.compare.table import print_comparison

    print_comparison(command.compare(comparison, setting, engine_options, workload_options))


@app.command(short_help="Pictures and one page from results.")
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Results, as --output-json wrote them.")],
) -> None:
    """Draw all results (*.json) of a folder: DIR/report.html, and its pictures as DIR/*.svg."""
    from bench.report.command import write

    typer.echo(f"wrote {write(folder)}")
