"""The command line: generate, demo, doctor, convert."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from jbatch.errors import JBatchError
from jbatch.options import ENGINE, SAMPLING, with_options
from weights.errors import WeightsError

app = typer.Typer(
    help="Continuous batching for LLaMA inference in JAX.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ModelDir = Annotated[Path, typer.Argument(help="A Hugging Face model directory, or a converted one.")]


@app.command()
@with_options(ENGINE, SAMPLING)
def generate(
    engine_options: dict[str, Any],
    sampling_options: dict[str, Any],
    model: ModelDir,
    prompt: Annotated[list[str], typer.Option("--prompt", "-p", help="May be repeated.")],
    seed: Annotated[
        int, typer.Option(help="Of the engine: every request's own seed is derived from it.")
    ] = 0,
) -> None:
    """Complete prompts with a model, and print the texts in the prompts' order."""
    from jbatch.llm import LLM
    from jbatch.request import SamplingParams

    params = SamplingParams(**sampling_options)
    with LLM(model, seed=seed, **engine_options) as llm:
        outputs = llm.generate(prompt, params)
    for output in outputs:
        if output.error is None:
            typer.echo(f"{output.prompt}{output.outputs[0].text}")
        else:
            typer.echo(f"{output.prompt!r}: {output.error}", err=True)
    if any(output.error is not None for output in outputs):
        raise typer.Exit(1)


@app.command()
def demo(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
) -> None:
    """Answer 64 prompts with the small model that ships with jbatch, in all four batching modes."""
    from jbatch.demo import run_demo

    run_demo(json_file, device)


@app.command()
def doctor(
    model: Annotated[Path | None, typer.Argument(help="A model directory to look at, too.")] = None,
) -> None:
    """Show versions and devices, and whether a model directory can be used."""
    from jbatch.doctor import examine

    if not examine(model):
        raise typer.Exit(1)


@app.command()
def convert(
    model: Annotated[Path, typer.Argument(help="A Hugging Face model directory.")],
    out: Annotated[Path, typer.Argument(help="A directory to create.")],
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16, float32.")] = "auto",
) -> None:
    """Convert weights to an Orbax checkpoint with checksums, for `jbatch generate OUT` and `LLM(OUT)`."""
    from jbatch.convert import convert_model

    convert_model(model, out, dtype)
    typer.echo(f"wrote {out}")


def main() -> None:
    """Run a command; an error that says what is wrong is one line and exit code 2."""
    warnings.showwarning = lambda message, *_, **__: typer.echo(f"jbatch: {message}", err=True)
    try:
        app()
    except (JBatchError, WeightsError) as error:
        typer.echo(f"jbatch: {error}", err=True)
        sys.exit(2)
