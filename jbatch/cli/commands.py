"""The commands: generate, merge, demo, doctor, plan, convert, and those of entry points."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from jbatch.cli.entry_points import CommandsAndEntryPoints
from jbatch.cli.help import GroupedCommand, choices
from jbatch.cli.options import ENGINE, SAMPLING, Flags, with_options
from jbatch.cli.say import say
from jbatch.config import DTYPES, EngineConfig
from jbatch.distribution import version
from jbatch.jobs.files import check_replaceable
from jbatch.jobs.options import JOB_HELP, JobOptions
from jbatch.jobs.signals import INTERRUPTED, exit_at_once
from jbatch.model_dir.shapes import RUNNABLE, find_shape
from jbatch.sizes import parse_bytes

JOB = Flags(JobOptions, JOB_HELP, {"File of requests": tuple(JOB_HELP)})

app = typer.Typer(
    cls=CommandsAndEntryPoints,
    help="Continuous batching for LLaMA inference in JAX.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # tables of flags do not fit 80 columns
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"jbatch {version()}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Options without a command."""


@dataclasses.dataclass(frozen=True)
class PromptOptions:
    """Prompts on the command line, instead of a file of requests."""

    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", metavar="TEXT", help="May be repeated.", rich_help_panel="Prompts"),
    ] = None
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Each prompt is a user's message: print the answers alone.",
            rich_help_panel="Prompts",
        ),
    ] = False
    chat_template: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A Jinja template for chats, instead of the model's.",
            rich_help_panel="Prompts",
        ),
    ] = None


@dataclasses.dataclass(frozen=True)
class RayOptions:
    """Who answers a file of requests, if not this process."""

    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Let a Ray cluster answer: -i is a folder or a file, -o a folder.",
            rich_help_panel="Cluster",
        ),
    ] = False
    replicas: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="With --ray, engines. [default: one for each GPU, or one]",
            rich_help_panel="Cluster",
        ),
    ] = None


@app.command(cls=GroupedCommand, short_help="Complete prompts, or a JSONL file of requests, with a model.")
@with_options(PromptOptions, RayOptions, JOB, ENGINE, SAMPLING)
def generate(
    prompts: PromptOptions,
    ray: RayOptions,
    job_options: dict[str, Any],
    engine_options: dict[str, Any],
    sampling_options: dict[str, Any],
    ctx: typer.Context,
    model: Annotated[Path, typer.Argument(help="A Hugging Face model directory, or a converted one.")],
) -> None:
    """Complete prompts with a model, and print the texts in the prompts' order (-p), or answer a file of
    JSONL requests, each result written as it comes (-i and -o).

    A prompt that cannot be served is reported on standard error, the others go on, and the exit code is 1.
    With -i its result in the output says why. An answer that is there is never computed again: a job that was
    ended, however, goes on with the same command. Exit codes: 0 all answered, 1 some results are errors,
    2 refused, 3 stopped by a failure, 130 and 143 by a signal.
    """
    if (reason := _misused(prompts, ray, is_job=bool(job_options))) is not None:
        ctx.fail(reason)
    if not job_options:
        from jbatch.cli.prompts import generate_prompts

        texts = prompts.prompt or []
        generate_prompts(
            model, say, texts, engine_options, sampling_options, prompts.chat, prompts.chat_template
        )
        return
    options = (model, engine_options, sampling_options, job_options, say, prompts.chat_template)
    if ray.ray:
        from jbatch.integrations.ray_data.job import run_ray

        code = run_ray(*options, ray.replicas)
    else:
        from jbatch.jobs.command import run_generate

        code = run_generate(*options)
    if code:
        raise typer.Exit(code)


def _misused(prompts: PromptOptions, ray: RayOptions, *, is_job: bool) -> str | None:
    """Why these options of `generate` do not go together, if they do not."""
    if not prompts.prompt and not is_job:
        return "give prompts (-p), or an input and an output file (-i and -o)"
    if prompts.prompt and is_job:
        return "-p takes none of the options of -i"
    if prompts.chat and is_job:
        return "--chat takes -p: the lines of a file are chats where they have messages"
    if prompts.chat_template is not None and not (prompts.chat or is_job):
        return "--chat-template takes --chat, or -i"
    if ray.replicas is not None and not ray.ray:
        return "--replicas takes --ray"
    if ray.ray and not is_job:
        return "--ray takes -i and -o"
    return None


@app.command(short_help="Join the outputs of all shards of a job, in the input's order.")
def merge(
    outputs: Annotated[list[str], typer.Argument(metavar="OUT...", help="Of all shards, in any order.")],
    output_file: Annotated[
        str, typer.Option("--output-file", "-o", metavar="MERGED", help="A file to make.")
    ],
    input_file: Annotated[
        str | None,
        typer.Option("--input-file", "-i", metavar="FILE", help="The job's input, where it has moved."),
    ] = None,
) -> None:
    """Join the outputs of `jbatch generate --shard 1/n` to `n/n`, once each line has exactly one result, all
    of the same input, model and options. Else nothing is written, and what is wrong is said.

    Exit codes: 0 all answered, 1 some results are errors, 2 refused, 3 a failure.
    """
    from jbatch.jobs.merge import merge

    if code := merge(outputs, output_file, input_file, say):
        raise typer.Exit(code)


@app.command(short_help="Show what continuous batching does, on a small model that is included.")
def demo(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures to this file.")
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            metavar=choices(("auto", "cpu", "cuda")), help="Where to compute; auto: a GPU where there is one."
        ),
    ] = "auto",
) -> None:
    """Answer 64 prompts with the small model that comes with jbatch, batched in four ways."""
    path = None if json_file is None else os.path.realpath(json_file)
    if path is not None:
        check_replaceable(path)  # now, rather than after the work
    from jbatch.cli.demo import run_demo

    run_demo(path, device)


@app.command(short_help="Show versions and devices, and whether a model can be used.")
def doctor(
    model: Annotated[Path | None, typer.Argument(help="A model directory to look at, too.")] = None,
) -> None:
    """Show versions and devices, and whether a model directory can be used: if not, the exit code is 1."""
    from jbatch.cli.doctor import examine

    if not examine(model):
        raise typer.Exit(1)


@app.command(
    cls=GroupedCommand, short_help="Show what a model would take of a GPU's memory, and whether it fits."
)
@with_options(ENGINE.with_helps(max_num_seqs="Sequences that run at once."))
def plan(
    engine_options: dict[str, Any],
    model: Annotated[
        Path, typer.Argument(help=f"A directory, of which config.json is read, or {', '.join(RUNNABLE)}.")
    ],
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Of the GPU to plan for, e.g. 80GiB. [default: this device's]",
            rich_help_panel="Memory",
        ),
    ] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON.", rich_help_panel="Output")
    ] = False,
) -> None:
    """Show weights, KV cache, temporaries, buckets and programs, before any weight is loaded.

    What cannot fit is refused with exit code 2, saying which option to change, and to what.
    """
    from jbatch.cli.memory_report import report_memory
    from jbatch.cli.tables import echo

    config = EngineConfig(**engine_options)
    num_bytes = None if gpu_memory is None else parse_bytes("gpu_memory", gpu_memory)
    report = report_memory(find_shape(model), config, num_bytes)
    report = dataclasses.replace(report, model=str(model))
    if json_output:
        typer.echo(json.dumps(report.as_json(), indent=1))
    else:
        echo(report.describe())


@app.command(short_help="Convert weights once, for faster and checked loading.")
def convert(
    model: Annotated[Path, typer.Argument(help="A Hugging Face model directory.")],
    out: Annotated[Path, typer.Argument(help="A directory to create.")],
    dtype: Annotated[
        str, typer.Option(metavar=choices(("auto", *DTYPES)), help="Of the weights; auto: as they are.")
    ] = "auto",
) -> None:
    """Convert weights to an Orbax checkpoint with checksums, for `jbatch generate OUT` and `LLM(OUT)`."""
    from jbatch.cli.convert import convert_model

    signal.signal(signal.SIGINT, signal.default_int_handler)  # so that what is half written is removed
    try:
        convert_model(model, out, dtype)
    except KeyboardInterrupt:
        exit_at_once(INTERRUPTED)
    typer.echo(f"wrote {out}")
